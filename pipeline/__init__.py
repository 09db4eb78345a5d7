"""From ARC tasks to a filed report: data, distributed training on Ray, tracking in MLflow."""
