"""The Tuner: which trials run when. It works in a thread; what it leaves behind is in the trials' folders."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ray_private import on_the_head, silent_callbacks, trials_in_order
from pipeline.records.attempts import write_failure
from pipeline.records.phases import noting_driver
from pipeline.records.state import State, state_of
from pipeline.running.driver import TrialFailed, explain, held_by, run_trial
from pipeline.running.kept_workers import give_back_of_dead
from pipeline.running.progress import TrialProgress
from pipeline.running.trial_spec import TrialSpec
from pipeline.settings.user_code import code_digest, user_code

DRIVER_BYTES = 256 * 2**20  # a running trial's own process and the one for its workers' barriers: 234 MB measured


@dataclass(frozen=True)
class TunerJob:
    """What the Tuner works on: the trials that are left, in the command `session`."""

    folder: Path
    session: str
    left: list[TrialProgress]
    data: str
    train_fn: str  # by name
    verbose: bool
    trials: str | None = None  # where they lie, when that is in a storage
    spread: bool = False  # over all nodes, which then see `folder`; else all is driven from the head

    def spec(self, progress: TrialProgress) -> TrialSpec:
        """One of its trials, as the trial's process gets it."""
        trial = progress.trial
        code = code_digest(user_code(trial.experiment))
        # Elsewhere workers do not see what is written here at once. A user's own code may leave anything behind.
        keeps = not self.spread and self.trials is None and not code
        return TrialSpec(
            key=trial.key,
            experiment=trial.experiment,
            folder=progress.folder,
            data=self.data,
            train_fn=self.train_fn,
            session=self.session,
            user_code=code,
            trials=self.trials,
            verbose=self.verbose,
            kept=self.kept if keeps else None,
        )

    @property
    def kept(self) -> Path:
        """See TrialSpec."""
        return (self.folder / "ray" / self.session / "kept").resolve()

    @property
    def stop(self) -> Path:
        """Where this file is, the Tuner lets go of everything."""
        return self.folder / "ray" / f"{self.session}.stop"


def tune_trials(job: TunerJob, at_once: Callable[[], int], faults: list[BaseException]) -> None:
    """One Tuner over the trials' keys. Its trainable holds no CPU, so that no trial takes its own workers' place.

    `at_once` is asked before a trial is taken up. What has begun goes on when the number falls: Ray Train starts a
    trial's workers all together or not at all, so that trials wait for room, and never for one another's halves.
    """
    from ray import tune

    from pipeline.running.trainer import give_back

    specs = {progress.trial.key: job.spec(progress) for progress in job.left}
    stop, verbose, kept = job.stop, job.verbose, job.kept

    class NoReport(tune.ProgressReporter):
        """In a notebook Tune's own reporter clears the cell's output whatever its settings, and with it our table."""

        def should_report(self, trials: Any, done: bool = False) -> bool:
            return False

        def report(self, trials: Any, done: bool, *sys_info: Any) -> None:
            pass

    class GivesBack(tune.Callback):
        """Gives back what a trial held whose process died, whether it is taken up again or not."""

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            give_back(held_by(specs[trial.config["trial"]].folder))

        on_trial_error = on_trial_recover

        def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
            give_back_of_dead(kept)

    survived = max(p.trial.experiment.workers.max_failures for p in job.left)

    class StopFile(tune.Stopper):
        """Asked after every event. Raises rather than agrees: Tune would wait for each trial to end by itself."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            if stop.exists():
                raise SystemExit
            return False

    def trial(config: dict[str, Any]) -> None:
        spec = specs[config["trial"]]
        # The reason of a failure is in the trial's folder; Tune sees only this process's own death.
        with contextlib.suppress(TrialFailed), noting_driver(spec.folder, spec.session):
            run_trial(spec)

    try:
        # Tune refuses a trainable that holds nothing at all. Memory is what a node has that may have no CPU; the head's
        # own resource is there in every cluster.
        held = {"memory": DRIVER_BYTES} if job.spread else on_the_head()
        tune.Tuner(
            tune.with_resources(trial, {"CPU": 0, **held}),
            param_space={"trial": tune.grid_search(list(specs))},
            tune_config=tune.TuneConfig(
                search_alg=trials_in_order(at_once),
                reuse_actors=True,  # seconds of imports less for every trial but the first
                trial_dirname_creator=lambda tried: str(tried.trial_id),
            ),
            run_config=tune.RunConfig(
                name=job.session,
                storage_path=str((job.folder / "ray").resolve()),
                verbose=2 if verbose else 0,
                stop=StopFile(),
                progress_reporter=None if verbose else NoReport(),
                callbacks=[GivesBack(), *([] if verbose else silent_callbacks())],
                failure_config=tune.FailureConfig(max_failures=survived),
            ),
        ).fit()
    except BaseException as error:  # also SystemExit, which Ray raises in a thread when its cluster goes
        faults.append(error)


def account_for(job: TunerJob, faults: list[BaseException]) -> None:
    """No trial may end without a word: one that neither ended nor failed gets the reason written down."""
    reason = explain(faults[0]) if faults else "its driver process ended without a word; it may have run out of memory"
    for trial in job.left:
        if not trial.folder.ended and state_of(trial.folder, job.session) is not State.FAILED:
            write_failure(trial.folder, job.session, reason)
