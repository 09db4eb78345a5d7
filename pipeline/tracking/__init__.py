"""Delivery to MLflow, which may be unreachable for a time."""
