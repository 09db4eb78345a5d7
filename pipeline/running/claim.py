"""Which experiment a folder belongs to, so that no two are ever mixed in one."""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, write_whole
from pipeline.layout import TrialFolder
from pipeline.records.attempts import noted_attempts
from pipeline.records.sweep_record import RECORD, read_record
from pipeline.renamed import current_settings
from pipeline.settings.config import BEFORE, Experiment
from pipeline.settings.growth import growth, may_grow, parsed
from pipeline.settings.trials import every_trial
from pipeline.settings.user_code import as_record, code_difference, code_digest, user_code
from pipeline.tracking.destination import remembered_id

_WITHOUT_EFFECT = ("description", "sweep.max_concurrent", "scales")  # on any trial's result
_GROWN = "grown"  # in the record: what was added to the experiment, and when
_CODE = "user_code"  # in the record: the files that the settings name as code
_THERE_TOO = " (with --storage, sweeps/{} in it too, from where it would come back)"


def claim(
    folder: Path,
    experiment: Experiment,
    data_hash: str,
    resume: bool,
    command: str,
    accept_changed_code: bool = False,
    anything_left: bool = True,
    report_growth: Callable[[str], None] = lambda message: None,
) -> bool:
    """Writes folder/sweep.json, or finds there that the folder is this experiment's own; whether it was written now.

    A new record gets a random id. Where the record alone is gone, the new one takes over the id that its runs have.
    Where the experiment has grown, the record notes it.

    Args:
        report_growth: called with what was added to the experiment, in words.
        accept_changed_code: go on though the user's own code is another than that of the record, and put it there.
        anything_left: whether any trial is still to be run, with the code that there is now.

    Raises:
        UserError: it belongs to another experiment (named by what differs), or to this one and `resume` is False; or
            the user's own code has changed since, and that is not accepted.
    """
    added = check_claim(folder, experiment, data_hash)
    begun = added is not None
    if added and not resume:
        raise UserError(
            f"{folder}: this experiment has been started before, without {_listed(added)}. Run what is new with:\n"
            f"  {command} --resume"
        )
    if begun and not resume:
        raise UserError(
            f"{folder}: this experiment has been started before. Go on with:\n  {command} --resume\n"
            "Finished trials are not repeated. To start over, remove that folder"
            f"{_THERE_TOO.format(folder.name)}."
        )
    fresh = not (folder / RECORD).exists()
    if fresh:
        if begun and anything_left and not accept_changed_code:
            _check_noted_code(folder, experiment, command)
        known = remembered_id(folder) if begun else None
        record = {"id": uuid.uuid4().hex if known is None else known, **_record(experiment, data_hash)}
        write_whole(folder / RECORD, json.dumps(record | {_CODE: as_record(user_code(experiment))}, indent=1))
    elif anything_left:
        _check_code(folder, experiment, accept_changed_code, command)
    if added and not fresh:
        record = read_record(folder)
        noted = f"{time.strftime('%Y-%m-%d')}: {_listed(added)}"
        grown = [*record.get(_GROWN, []), noted] if isinstance(record.get(_GROWN, []), list) else [noted]
        now = record | _record(experiment, data_hash) | {_CODE: as_record(user_code(experiment)), _GROWN: grown}
        write_whole(folder / RECORD, json.dumps(now, indent=1))
        report_growth(
            f"{experiment.name} grows by {_listed(added)}. Trials that have ended with all their steps are kept."
        )
    return fresh


def _listed(added: Sequence[str]) -> str:
    return "; ".join(added)


def _check_code(folder: Path, experiment: Experiment, accept: bool, command: str) -> None:
    record, code = read_record(folder), user_code(experiment)
    before = record.get(_CODE)
    # What comes with new arms is new, and changes none of the trials that there are.
    of_then = user_code(parsed(record["experiment"]) or experiment)
    if isinstance(before, dict) and (difference := code_difference(before, of_then)):
        if not accept:
            raise UserError(
                f"{folder}: your own code has changed since this experiment was last run:\n{indent(difference, '  ')}\n"
                "Trials with the one and with the other would be averaged as one arm. Put the code back; or give the "
                "experiment another name (--set name=...); or continue anyway (the report will say so) with:\n"
                f"  {command} --resume --accept-changed-code"
            )
    elif isinstance(before, dict):
        return
    write_whole(folder / RECORD, json.dumps(record | {_CODE: as_record(code)}, indent=1))


def _check_noted_code(folder: Path, experiment: Experiment, command: str) -> None:
    """Where the record is gone, what the trials have noted of the code that they were trained with is looked at."""
    for trial in every_trial(experiment):
        noted = noted_attempts(TrialFolder(folder / "trials" / trial.key))
        if noted and noted[-1].get("user_code", "") not in ("", code_digest(user_code(trial.experiment))):
            raise UserError(
                f"{folder}: your own code has changed since {trial.key} was last run. Put it back; or continue "
                f"anyway (the report will say so) with:\n  {command} --resume --accept-changed-code"
            )


def withdraw(folder: Path, before: str | None) -> None:
    """Takes a claim back: nothing was begun, and a command with other settings may have the folder.

    Args:
        before: the record as it was before the claim; None where there was none.
    """
    if before is None:
        (folder / RECORD).unlink(missing_ok=True)
    else:
        write_whole(folder / RECORD, before)


def check_claim(folder: Path, experiment: Experiment, data_hash: str) -> tuple[str, ...] | None:
    """What this experiment has more of than when it was started in the folder, in words; None where none has been.

    Where sweep.json is gone, the trials that were begun say whose the folder is.

    Raises:
        UserError: another experiment has, or it cannot be known.
    """
    path = folder / RECORD
    if path.exists():
        before = read_json(path)
        if not isinstance(before, dict) or not isinstance(before.get("experiment"), dict):
            raise UserError(
                f"{path}: is damaged: it is not JSON that names the experiment of {folder}. To continue with the "
                "trials there, if their own settings have not changed, remove this file alone; or use another --output."
            )
        then = {name: before.get(name) for name in ("experiment", "data_hash")}
        return _added(folder, experiment, then, _record(experiment, data_hash))
    trials = {trial.key: trial.experiment for trial in every_trial(experiment)}
    folders = map(TrialFolder, sorted(folder.glob("trials/*")))
    begun = [trial for trial in folders if trial.config.exists() or trial.ended or any(trial.checkpoints.glob("*"))]
    for trial in begun:
        then, key = read_json(trial.config), trial.root.name
        if key not in trials or not isinstance(then, dict):
            why = "is no trial of this experiment" if key not in trials else "has no config.json that says its settings"
            raise UserError(
                f"{trial.root}: {why}, and {path} is gone. Give this experiment another name (--set name=...) or "
                "another --output, or remove the trial's folder to run it anew."
            )
        now = {"experiment": trials[key].model_dump(mode="json")}
        _added(folder, trials[key], {"experiment": then}, now)
    return () if begun else None


def _record(experiment: Experiment, data_hash: str) -> dict[str, Any]:
    return {"experiment": experiment.model_dump(mode="json"), "data_hash": data_hash}


def _added(folder: Path, experiment: Experiment, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """What the experiment `now` has more of than `before`; refused where it is another, or cannot grow so."""
    before = {**before, "experiment": current_settings(before["experiment"])}
    old, new = BEFORE | _flat(before), BEFORE | _flat(now)
    different = [f for f in sorted(old | new) if old.get(f) != new.get(f) and not _is_without_effect(f)]
    if not different:
        return ()
    then = parsed(before["experiment"]) if all(map(may_grow, different)) else None
    grown = growth(then, experiment) if then else None
    if grown is not None and not grown.problems:
        return grown.added
    if grown is not None:
        raise UserError(
            f"{folder}: holds this experiment, which cannot grow in this way:\n"
            + "\n".join(f"  {problem}." for problem in grown.problems)
            + "\nOr give this one another name (--set name=...) or another --output."
        )
    lines = [f"  {field}: there {_shown(old, field)}, now {_shown(new, field)}" for field in different]
    raise UserError(
        f"{folder}: holds another experiment of the name {experiment.name!r}:\n" + "\n".join(lines) + "\n"
        "Give this one another name (--set name=...) or another --output, or remove that folder"
        f"{_THERE_TOO.format(folder.name)}. To an existing sweep, seeds, arms, grid values and samples can be "
        "added, and steps if training.schedule is constant; its unfinished trials may have another workers.count."
    )


def _is_without_effect(field: str) -> bool:
    return any(field == each or field.startswith(f"{each}.") for each in _WITHOUT_EFFECT)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.removeprefix("experiment."): value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _shown(flat: dict[str, Any], field: str) -> str:
    return json.dumps(flat[field]) if field in flat else "nothing"
