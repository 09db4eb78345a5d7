"""What the report says of a sweep to which something was added after it was begun."""

from pipeline.reporting.comparisons import Primary
from pipeline.reporting.results import Results
from pipeline.tracking.mlflow_run import GROWN

_COMMIT = "mlflow.source.git.commit"
_SHOWN = 12  # digits of a commit


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
            " The p-value of the comparison that the study named holds for a number of seeds that was fixed before the "
            "first result was seen; where seeds were added because of what the first ones showed, it is too small."
        )
    return [text]
