"""Storage that every machine reaches, and trials and sweeps that lie in it."""
