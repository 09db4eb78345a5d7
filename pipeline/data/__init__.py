"""From ARC tasks to each rank's batches."""
