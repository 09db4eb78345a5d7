"""From a task's data to each rank's batches."""
