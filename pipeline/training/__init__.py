"""What a worker does: steps, evaluation, checkpoints, and what it leaves behind."""
