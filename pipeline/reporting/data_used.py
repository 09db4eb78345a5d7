"""What the report says of the data: where it is from, what was scored, what was too long, and what leaks."""

import math
from typing import Any

from pipeline import measures
from pipeline.data.split import FOR_SELECTION
from pipeline.reporting.data_facts import parse_data
from pipeline.reporting.example_facts import example_words
from pipeline.reporting.results import Results
from pipeline.reporting.statistics import mean

_SPLITS = {"held_out": "held-out", "evaluation": "evaluation"}


def data_words(results: Results) -> list[str]:
    """A sentence or two for each data set that the trials were trained on, with the scores of all of them."""
    words = list(dict.fromkeys(_of(parse_data(name, profile)) for name, profile in results.data))
    words += [text for text in [_order(results)] if text]
    scores = [line for split in _SPLITS if (line := _scores(results, split))]
    return [" ".join(filter(None, [*words, *scores]))] if any(words) else scores


def scores_of(results: Results, place: int) -> dict[str, dict[int, float]]:
    """All metrics of the held-out and the evaluation tasks of one row, by name and seed."""
    trials = results.rows[place].trials
    names = sorted({name for trial in trials.values() for name in trial.metrics if name.split("/")[0] in _SPLITS})
    return {name: {seed: trial.last(name) for seed, trial in sorted(trials.items())} for name in names}


def _of(data: dict[str, Any]) -> str:
    """Empty for runs from before data sets told of themselves."""
    parts = []
    item = _item_of(data)
    for split, title in _SPLITS.items():
        scored, long = _count(data, split, "tasks"), _count(data, split, "too_long_tasks")
        if scored is None or (split == "evaluation" and not scored and not long):
            continue
        left = f", {long} too long to score" if long else ""
        parts.append(f"{scored} {title} {item}s scored{left}")
    if not parts:
        return ""
    trained, long = _count(data, "train", "tasks"), _count(data, "train", "too_long_tasks")
    where = f" in {data['source']}" if isinstance(data.get("source"), str) else ""
    left = f" ({long} too long to train on or hold out)" if long else ""
    text = f"Data: {data['name']}{where}; {trained} {item}s trained on{left}; {'; '.join(parts)}."
    if data.get("held_out_for") == "selection":
        text += f" {FOR_SELECTION}"
    for what, one, several in (("leaks", "leak", "leaks"), ("refused", "file refused", "files refused")):
        listed = data.get(what)
        if isinstance(listed, dict) and isinstance(listed.get("number"), int) and listed["number"]:
            first = listed.get("first")
            named = [text for text in first if isinstance(text, str)] if isinstance(first, list) else []
            more = ", ..." if listed["number"] > len(named) else ""
            text += f" {listed['number']} {one if listed['number'] == 1 else several}: {'; '.join(named)}{more}."
    return text


def _scores(results: Results, split: str) -> str:
    """Means over all decoded pairs and seeds, arm by arm."""
    of_arms, some, words = [], False, example_words(results)
    for row in results.rows:
        name = ", ".join([row.arm, *(f"{field} {value}" for field, value in row.cell)])
        shares = []
        for each in words.measured:
            value = mean({seed: trial.last(f"{split}/{each.name}") for seed, trial in row.trials.items()})
            if math.isfinite(value):
                some |= value != 0
                shares.append(each.show(value))
        if shares:
            of_arms.append(f"{name}: {', '.join(shares)}")
    decoded = f"Of the {_SPLITS[split]} {_item(results)}s that were decoded"
    if of_arms and not some and words.all_zero:
        return f"{decoded} {words.all_zero}."
    return f"{decoded}, by arm: {'; '.join(of_arms)}." if of_arms else ""


def _order(results: Results) -> str:
    """That tasks were trained on one after the other, where they were."""
    trials = [trial for row in results.rows for trial in row.trials.values()]
    some = [trial for trial in trials if trial.params.get("data.order") == "sequential"]
    if not some:
        return ""
    where = "Trained" if len(some) == len(trials) else "With data.order = sequential trained"
    number = max((trial.last(measures.TASK_NUMBER) for trial in some), default=math.nan)
    tasks = f"one after the other of {number:.0f} tasks" if math.isfinite(number) else "one task after the other"
    return (
        f"{where} on {tasks}, in the same order in all trials. Forgetting is the increase of the loss on earlier tasks "
        "since each was finished, on a sample of their training rows."
    )


def _item(results: Results) -> str:
    return next((_item_of(parse_data(*each)) for each in results.data), "task")


def _item_of(data: dict[str, Any]) -> str:
    return data["item"] if isinstance(data.get("item"), str) else "task"


def _count(data: dict[str, Any], split: str, what: str) -> int | None:
    counts = data.get(split)
    value = counts.get(what) if isinstance(counts, dict) else None
    return value if type(value) is int else None
