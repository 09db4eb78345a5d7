"""Whether a sweep's trials were trained with one and the same code of the user's own."""

from pipeline.reporting.results import Results
from pipeline.tracking.describe import USER_CODE


def changed_code(results: Results) -> list[str]:
    """A sentence for each arm whose trials, or one of whose trials, were trained with several versions of it."""
    sentences = []
    for arm in dict.fromkeys(row.arm for row in results.rows):
        trials = [trial for row in results.rows if row.arm == arm for trial in row.trials.values()]
        seeds: dict[str, list[int]] = {}
        for trial in trials:
            seeds.setdefault(trial.tags.get(USER_CODE, ""), []).append(trial.seed)
        if len(seeds) > 1 or any(", " in codes for codes in seeds):
            parts = [
                f"seed {', '.join(map(str, sorted(set(of))))} with {codes.replace(', ', ', then ') or 'unknown code'}"
                for codes, of in seeds.items()
            ]
            sentences.append(
                f"The code of {arm} changed during the sweep, which --accept-changed-code allowed: "
                f"{'; '.join(parts)}. Its means mix trials of different code."
            )
    return sentences
