"""From a task's data to a filed report: data, distributed training on Ray, tracking in MLflow."""
