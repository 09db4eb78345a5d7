"""Drills: the real command, real Ray workers, a real fault. `python -m tests.drills [NAME ...]`; `make drills`."""
