"""Runs trials on Ray Tune, watches them, and ends cleanly however it ends."""

import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import ray_private
from pipeline.data.manifest import Prepared
from pipeline.errors import UserError
from pipeline.files import make_private
from pipeline.interrupts import Interrupts
from pipeline.layout import TrialFolder
from pipeline.records.continued import close_again, is_left, open_again
from pipeline.records.lock import folder_lock
from pipeline.records.phases import TRIALS, trial_record, write_phases
from pipeline.records.pruned import settle
from pipeline.records.state import State, state_of
from pipeline.records.sweep_record import RECORD, sweep_id
from pipeline.remote.sweep import RemoteSweep
from pipeline.running.capacity import Capacity
from pipeline.running.claim import claim, withdraw
from pipeline.running.cluster import EarlyStart, HeadWatch, Resources, connect, fit, local_resources
from pipeline.running.driver import TrainFunction, name_of
from pipeline.running.live import LiveView
from pipeline.running.nodes import check_nodes
from pipeline.running.outcome import SweepOutcome, outcome_of, print_end, print_line, print_start
from pipeline.running.progress import TrialProgress
from pipeline.running.pruning import Pruner
from pipeline.running.redirect_output import redirect_output
from pipeline.running.run_options import RunOptions
from pipeline.running.tuner import TunerJob, account_for, tune_trials
from pipeline.running.waiting import Standstill, report_waiting
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.storage.storage import PATIENCE_S, location
from pipeline.tracking.courier import Courier, TrackingTarget
from pipeline.tracking.describe import SWEEP_ID, git_commit
from pipeline.tracking.destination import remember

_POLL_EVERY_S = 0.5
_STOPPING_S = 15.0  # for the tracker to take the rest, after an interruption


def run_sweep(
    experiment: Experiment,
    trials: Sequence[Trial],
    prepared: Prepared,
    options: RunOptions,
    *,
    train_fn: TrainFunction | str,
    tracker: TrackingTarget,
    report: Callable[[], list[Path]] | None = None,
    shared: RemoteSweep | None = None,
    early: EarlyStart | None = None,
) -> SweepOutcome:
    """Runs those of `trials` that have no result yet, as many at once as the cluster has room for, in their order.

    A trial that fails does not stop the others. Ctrl-C and SIGTERM stop all within seconds; runs end as KILLED. When
    another command has taken the sweep over in the storage, all stops likewise, and its runs are left to that one.

    Args:
        trials: `trials_of(experiment)`, or one trial alone when the experiment has no `sweep`.
        options: its destination is where `tracker` delivers to: for the `tiny-onn sync` that delivers the rest.
        train_fn: what every worker runs, or its name, "package.module:name", where workers alone are to import it. It
            goes on from its own checkpoints, and rank 0 writes the result last.
        report: makes the files of the summary run, once all trials have been shipped; not after an interruption.
        shared: the sweep in a storage, entered, when its trials lie there.
        early: the cluster that is being started for it already.

    Raises:
        UserError: before anything starts: the folder is in use, or another experiment's, or this one's without
            `options.resume`; no trial fits the cluster; nothing answers at `options.address`.
    """
    output, address, console = options.output, options.address, options.console
    folder = output.sweep(experiment.name)
    places = [TrialFolder(output.trial(experiment.name, trial.key).root.resolve()) for trial in trials]
    progress = [TrialProgress(trial, place) for trial, place in zip(trials, places, strict=True)]
    session = uuid.uuid4().hex[:12]
    left = [p for p in progress if is_left(p.folder, p.steps)]
    if address is None:
        for one in left:
            fit(one.trial.experiment.workers, (local_resources(),), 1)
    with folder_lock(folder), Interrupts() as interrupts:
        before = (folder / RECORD).read_text(encoding="utf-8") if (folder / RECORD).exists() else None
        data_hash = prepared.manifest.data_hash
        report_growth = partial(print_line, console)
        accept = options.accept_changed_code
        claim(folder, experiment, data_hash, options.resume, options.command, accept, bool(left), report_growth)
        opened = [p for p in left if open_again(p.folder, p.steps)]
        tags = {**data_tags(prepared), "mlflow.source.git.commit": git_commit()}
        tags |= {SWEEP_ID: known} if (known := sweep_id(folder)) else {}
        remember(folder, options.destination, tags)
        for one in left:
            settle(one.folder)
        left = [p for p in left if not p.folder.ended]
        poll_states(progress, session)
        pairs = list(zip(trials, places, strict=True))
        make_private(folder / "ray")  # what Ray keeps there may hold the address of a storage with its password
        courier = Courier(tracker, experiment.name, folder, experiment, pairs, tags)
        trials_at = location(shared.storage / "trials") if shared else None
        data, spread = location(prepared.folder), address is not None and shared is None
        machines: list[Resources] = []  # once Ray has started
        note = partial(_note_phases, experiment.name, session, options, left, machines)
        job = TunerJob(folder, session, left, data, name_of(train_fn), options.verbose, trials_at, spread)
        try:
            if left and interrupts.signal is None:
                print_start(experiment.name, progress, left, console)
                with nullcontext() if options.verbose else redirect_output(folder / "ray" / "ray.log", console):
                    _run(job, experiment, options, progress, courier, interrupts, shared, machines, early)
            elif shared:
                shared.begin(session)
        except UserError:  # of the cluster, before any trial: as if the command had not been given
            courier.let_go()
            withdraw(folder, before)
            for one in opened:
                close_again(one.folder)
            raise
        finally:
            states = _settled(progress, session, interrupts.signal)
            courier.see(states)
            options.clock.enter("delivery")
            outcome = outcome_of(progress, interrupts.signal, shared.taken_by if shared else None)
            problems: list[str] = []
            if outcome.taken_by:
                courier.let_go()
            else:
                with report_waiting(console, "MLflow to take what is left"):
                    problems = courier.finish(
                        "KILLED" if outcome.interrupted else "FAILED" if outcome.exit_code else "FINISHED",
                        None if outcome.interrupted or not outcome.finished else partial(_after, note, report),
                        _STOPPING_S if outcome.interrupted else None,
                        lambda: interrupts.signal is not None,
                    )
    outcome = replace(outcome, undelivered=bool(problems) and not tracker.untouched)
    sync = options.destination.sync_command(experiment.name, output)
    options.clock.enter("shutdown")
    note()
    print_end(outcome, problems, progress, left, console, options.command, sync)
    return outcome


def poll_states(progress: Sequence[TrialProgress], session: str) -> dict[str, State]:
    """Every trial's state by its folder, taken into `progress`. What has ended is not read again."""
    for trial in progress:
        if not trial.over:
            trial.read(state_of(trial.folder, session))
    return {trial.trial.key: trial.state for trial in progress}


def data_tags(prepared: Prepared) -> dict[str, str]:
    """The data set, for the tags of runs and for the report."""
    manifest = prepared.manifest
    facts: dict[str, Any] = {split: count.model_dump(mode="json") for split, count in manifest.counts.items()}
    task = prepared.task
    leaks = [f"{leak.split} {task.item} {leak.task} is related to {leak.train_task}" for leak in manifest.leakage]
    config = manifest.config
    facts |= {"source": config.folder, "notes": list(manifest.notes[:10]), "held_out_for": config.held_out_for}
    facts |= {"item": task.item, "scores": [score.facts() for score in task.scores]}
    facts |= {"examples": task.examples.facts()} if task.examples is not None else {}
    if isinstance(prepared.folder, Path):  # the address of a storage may hold a password
        facts["prepared"] = str(prepared.folder)
    for name, lines in (("leaks", leaks), ("refused", list(manifest.refused))):
        facts[name] = {"number": len(lines), "first": lines[:5]}
    return {"data_name": manifest.dataset, "data_hash": manifest.data_hash, "data_counts": json.dumps(facts)}


def _run(
    job: TunerJob,
    experiment: Experiment,
    options: RunOptions,
    progress: list[TrialProgress],
    courier: Courier,
    interrupts: Interrupts,
    shared: RemoteSweep | None,
    machines: list[Resources],
    early: EarlyStart | None,
) -> None:
    """Runs the Tuner in a thread; this one watches, and takes the cluster down on a stop. `machines` gets what the
    cluster has."""
    address, console = options.address, options.console
    faults: list[BaseException] = []
    options.clock.enter("Ray")
    with connect(address, job.verbose, console, early) as cluster:
        machines += cluster.nodes
        interrupts.hold()
        with _before_any_trial():
            if address is not None:
                with report_waiting(console, "the cluster's nodes to describe themselves"):
                    check_nodes(None if shared else job.folder)
            wanted = (experiment.sweep.max_concurrent if experiment.sweep else None) or len(job.left)
            capacity = Capacity([p.trial.experiment.workers for p in job.left], min(wanted, len(job.left)))
            if shared:
                shared.begin(job.session)
            for lacking in ray_private.missing():
                print_line(console, lacking, "yellow")
            prunes = experiment.sweep and experiment.sweep.scheduler and ray_private.has("pruning")
            pruner = Pruner(experiment.sweep, progress) if experiment.sweep and prunes else None
        thread = threading.Thread(target=tune_trials, args=(job, capacity.refresh, faults), name="tuner", daemon=True)
        if interrupts.signal is None:
            options.clock.enter(TRIALS)
            thread.start()
        with LiveView(experiment.name, progress, console, capacity.at_once, job.verbose) as view:
            watch, standstill = HeadWatch(cluster.head), Standstill()
            while thread.is_alive() and interrupts.signal is None and not (shared and shared.taken_by):
                if lost := watch.check():
                    faults.append(lost)
                    break
                courier.see(poll_states(progress, job.session))
                if pruner is not None:
                    pruner.prune()
                view.note_room(capacity.at_once, capacity.lacking)
                waiting = any(trial.waits_for_room() for trial in progress)
                view.note_taken(waiting, capacity.taken if waiting else None)
                if warning := standstill.check(progress):
                    print_line(console, warning, "yellow")
                view.update()
                time.sleep(_POLL_EVERY_S)  # a signal cuts this short only in its handler, so it is kept small
            _settled(progress, job.session, interrupts.signal)
        options.clock.enter("shutdown")
        if thread.is_alive():  # Ray ends a process whose thread still talks to a cluster that is being taken down
            job.stop.touch()
            thread.join(timeout=5)
    if not (shared and shared.taken_by):
        away = shared.catch_up(_STOPPING_S if interrupts.signal else PATIENCE_S) if shared else None
        if away:
            console.print(
                f"Not all that the trials left can be seen: {away}", style="red", highlight=False, markup=False
            )
        if interrupts.signal is None:
            account_for(job, faults)
    job.stop.unlink(missing_ok=True)
    shutil.rmtree(job.folder / "ray" / job.session, ignore_errors=True)  # Tune's own state, which nobody reads


def _note_phases(
    sweep: str, session: str, options: RunOptions, ran: Sequence[TrialProgress], machines: Sequence[Resources]
) -> None:
    """Writes where the time has gone until now, if the command has run a trial; on a full disk it is not known."""
    workers = {p.trial.key: p.trial.experiment.workers for p in ran}
    records = {
        p.trial.key: trial_record(p.folder, session, workers[p.trial.key].count * workers[p.trial.key].cpus)
        for p in ran
    }
    trials = {key: record for key, record in records.items() if record is not None}
    cores = sum(machine.cpus for machine in machines)
    with suppress(OSError):
        if trials:
            write_phases(options.output.phases(sweep), sweep, session, cores, options.clock, trials)


def _after(note: Callable[[], None], report: Callable[[], list[Path]] | None) -> list[Path]:
    """The report's files, made once it is noted where the time has gone."""
    note()
    return report() if report else []


@contextmanager
def _before_any_trial() -> Iterator[None]:
    """What Ray raises here is as if the command had not been given."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"the Ray cluster failed before any trial was started ({type(error).__name__}: {reason[:300]}). Nothing "
            "was begun; give the same command again, or look at the cluster first."
        ) from error


def _settled(progress: Sequence[TrialProgress], session: str, stopped_by: int | None) -> dict[str, State]:
    """The states at the end. What was running when the sweep stopped is stopped: that its driver, dying with the
    cluster, may still call it a failure does not count."""
    stopped = {trial.trial.key for trial in progress if trial.state is State.STOPPED}
    states = poll_states(progress, session)
    for trial in progress:
        state = states[trial.trial.key]
        if state in (State.FINISHED, State.PRUNED) or stopped_by is None:
            continue
        if state is State.RUNNING or trial.trial.key in stopped:
            trial.folder.failure.unlink(missing_ok=True)
            trial.read(State.STOPPED)
    return {trial.trial.key: trial.state for trial in progress}
