"""What the report says of a sweep to which something was added after it was begun."""

from pipeline.reporting.comparisons import Primary
from pipeline.reporting.results import Results
from pipeline.tracking.describe import RESUMED_WORKERS
from pipeline.tracking.mlflow_run import GROWN

_COMMIT = "mlflow.source.git.commit"
_SHOWN = 12  # digits of a commit


def workers_words(results: Results) -> str:
    """Which trials were resumed with another number of workers, and what that changes; "" where none was."""
    trials = [trial for row in results.rows for trial in row.trials.values()]
    changed = [f"{t.arm} s{t.seed} ({t.tags[RESUMED_WORKERS]})" for t in trials if RESUMED_WORKERS in t.tags]
    if not changed:
        return ""
    return (
        f"Resumed with another workers.count: {', '.join(changed)}. From the resumed step on, the data order is that "
        "of the new number of workers, so some rows of that epoch may have been seen twice or not at all. Such a trial "
        "differs from one with the same number of workers throughout."
    )


def grown_words(results: Results, primary: Primary | None) -> list[str]:
    """What was added and when, which code the trials are of where that differs, and what it does to a planned test."""
    if GROWN not in results.about:
        return []
    text = f"This sweep has grown since it was begun: {results.about[GROWN]}."
    trials = [trial for row in results.rows for trial in row.trials.values()]
    commits: dict[str, int] = {}
    for trial in trials:
        commit = trial.tags.get(_COMMIT, "unknown")
        commits[commit] = commits.get(commit, 0) + 1
    if len(commits) > 1:
        parts = [f"{n} at {c[:_SHOWN]}{'-dirty' * c.endswith('-dirty')}" for c, n in commits.items()]
        text += f" Its finished trials were begun at different commits of the code: {', '.join(parts)}."
    if primary is not None and "seed " in results.about[GROWN]:
        text += (
            " The p-value of the primary comparison assumes that the number of seeds was fixed before the first result "
            "was seen. If seeds were added because of the first results, it is too small."
        )
    return [text]
