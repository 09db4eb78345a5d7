"""Prepared data sets of any size, written by the pipeline's own writer from repeated tasks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.data.arc import Corpus
from pipeline.data.shard_writer import write_data_set
from pipeline.data.tokens import encoded_length
from pipeline.settings.config import DataConfig
from pipeline.tasks.arc import ARC, source_of


def write_repeated(
    config: DataConfig, corpus: Corpus, times: int, folder: Path, progress: Callable[[int, int], None]
) -> None:
    """Every training task of `corpus` that is short enough, `times` times under ids of their own, as a data set.

    The views of a task depend on its id, and so may its copies' colours; there are no evaluation rows.
    """
    short = [task for task in corpus.train if encoded_length(task.pairs) <= config.max_tokens]
    tasks = tuple(replace(task, task_id=f"{task.task_id}-{copy}") for copy in range(times) for task in short)
    folder.mkdir(parents=True)
    source = source_of(Corpus(tasks, (), corpus.refused, corpus.source_hash), config)
    write_data_set(ARC, config, source, folder, progress)
