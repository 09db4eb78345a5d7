"""One file's content, whichever of the formats it is in."""

from dataclasses import replace

from pipeline.data.arc_json import RefusedTask
from pipeline.data.sources.found import Content
from pipeline.data.sources.json_text import read_json
from pipeline.data.sources.packed import gunzip, is_gzip, is_zip
from pipeline.data.sources.parquet import is_parquet, read_parquet
from pipeline.data.sources.shapes import content_of


def read_content(data: bytes, stem: str, place: str, pairs_per_task: int | None = None, seed: int = 0) -> Content:
    """What the bytes hold.

    Raises:
        RefusedTask: they are damaged, too large, packed more than once, or in no known format.
    """
    if is_gzip(data):
        data = gunzip(data, place)
    if is_gzip(data) or is_zip(data):
        raise RefusedTask(f"{place}: an archive in an archive; expected JSON, JSON lines or Parquet in it")
    value, memory = read_parquet(data, place) if is_parquet(data) else read_json(data, place)
    return replace(content_of(value, stem, place, pairs_per_task, seed), memory=memory)
