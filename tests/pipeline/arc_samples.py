"""Small ARC tasks for the tests."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipeline.data.task import Pair, Task, grid_of


def grids(side: int = 6) -> st.SearchStrategy[np.ndarray]:
    """Any grid up to side x side."""
    return st.tuples(st.integers(1, side), st.integers(1, side)).flatmap(
        lambda shape: st.lists(st.integers(0, 9), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda cells: grid_of(np.array(cells).reshape(shape))
        )
    )


def pairs() -> st.SearchStrategy[Pair]:
    """Any pair of small grids."""
    return st.builds(Pair, grids(), grids())


def tasks() -> st.SearchStrategy[Task]:
    """Any small task."""
    some = st.lists(pairs(), min_size=1, max_size=3).map(tuple)
    return st.builds(Task, st.text("abcdef0123456789", min_size=8, max_size=8), some, some)


def random_task(name: str, seed: int, side: int = 4, tests: int = 1) -> Task:
    """A task with random grids of random shapes."""
    draw = np.random.default_rng(seed)

    def grid() -> np.ndarray:
        return grid_of(draw.integers(0, 10, draw.integers(1, side + 1, 2)))

    return Task(name, tuple(Pair(grid(), grid()) for _ in range(2)), tuple(Pair(grid(), grid()) for _ in range(tests)))


def as_json(task: Task) -> dict:
    """The task as ARC JSON has it."""

    def pair(one: Pair) -> dict:
        known = {} if one.output is None else {"output": one.output.tolist()}
        return {"input": one.input.tolist(), **known}

    return {"train": [pair(p) for p in task.train], "test": [pair(p) for p in task.test]}


def write_tasks(folder: Path, tasks: list[Task]) -> Path:
    """A folder of ARC JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        (folder / f"{task.task_id}.json").write_text(json.dumps(as_json(task)))
    return folder


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet_of(rows: Sequence[dict]) -> bytes:
    """A Parquet file of these rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()
