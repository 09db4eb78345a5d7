"""What MLflow is told, whatever becomes of it meanwhile."""
