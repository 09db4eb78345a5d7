"""What can be known before anything starts: whether it can work, and what it would take."""
