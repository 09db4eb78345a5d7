"""Trials that have finished, and are to go on for more steps than they were begun for."""

from pipeline.files import flush, read_json
from pipeline.layout import TrialFolder


def is_left(folder: TrialFolder, steps: int) -> bool:
    """Whether something of a trial of so many steps is still to be run."""
    return not folder.ended or goes_on(folder, steps)


def goes_on(folder: TrialFolder, steps: int) -> bool:
    """Whether the trial has finished, after fewer than so many steps."""
    result = read_json(folder.result)
    done = result.get("steps") if isinstance(result, dict) else None
    return type(done) is int and done < steps


def open_again(folder: TrialFolder, steps: int) -> bool:
    """Makes a trial that `goes_on` an unfinished one, and returns whether it is such a one.

    Its result stays beside it under another name. Doing it again changes nothing.
    """
    if not goes_on(folder, steps):
        return False
    folder.result.replace(folder.earlier_result(read_json(folder.result)["steps"]))
    flush(folder.root)
    return True


def close_again(folder: TrialFolder) -> None:
    """Takes `open_again` back, where nothing has been run since."""
    earlier = folder.earlier_results()
    if earlier and not folder.result.exists():
        earlier[-1].replace(folder.result)
