"""Readers of the formats that ARC tasks come in. Which one reads a file is decided by what is in the file.

Bytes: `packed` (gzip, zip), `parquet`, `json_text` (JSON, JSON lines). What they hold: `shapes` (a task, tasks by id,
tasks by split, a list of tasks or of pairs, Kaggle's solutions). `walk` finds a folder's files; `folder` puts all
together.
"""
