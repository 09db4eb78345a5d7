"""Where a run's files are. Every path of the pipeline is made here."""

from dataclasses import dataclass
from pathlib import Path

ARTIFACTS = "mlflow-artifacts"  # the folder of a SQLite store's files, beside it


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial. The worker of rank 0 writes them; the driver reads them and ships them to MLflow."""

    root: Path

    @property
    def config(self) -> Path:
        """The trial's Experiment, as JSON."""
        return self.root / "config.json"

    @property
    def spool(self) -> Path:
        """JSON lines: {"step": int, "time_ms": int, "metrics": {name: float}}."""
        return self.root / "metrics.jsonl"

    @property
    def delivery(self) -> Path:
        """The MLflow run of this trial, and what it has of the folder; see `pipeline.records.delivery`."""
        return self.root / "mlflow_run.json"

    @property
    def result(self) -> Path:
        """Written last, and whole: a trial with this file is finished."""
        return self.root / "result.json"

    def earlier_result(self, steps: int) -> Path:
        """The result of so many steps, after which the trial was to go on for more."""
        return self.root / f"result-{steps:06d}.json"

    def earlier_results(self) -> list[Path]:
        """Those that there are, in order."""
        return sorted(self.root.glob("result-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))

    @property
    def prune(self) -> Path:
        """The driver's request that the trial ends early; its workers do so at the next logged step."""
        return self.root / "prune.json"

    @property
    def pruned(self) -> Path:
        """Written last in place of a result: at which step the trial was ended."""
        return self.root / "pruned.json"

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to run: the trial is finished, or pruned."""
        return self.result.exists() or self.pruned.exists()

    @property
    def failure(self) -> Path:
        """Why the last attempt failed, as text."""
        return self.root / "failure.txt"

    @property
    def attempts(self) -> Path:
        """JSON lines: when the trial was taken up, and with which code, packages and settings."""
        return self.root / "attempts.jsonl"

    def survived(self, attempt: int) -> Path:
        """Why an attempt ended that was followed by another, as text."""
        return self.root / f"survived-{attempt:03d}.txt"

    def survived_files(self) -> list[Path]:
        """Those of all attempts, in order."""
        return sorted(self.root.glob("survived-*.txt"))

    @property
    def checkpoints(self) -> Path:
        """step-000100/, step-000200/, ..."""
        return self.root / "checkpoints"

    @property
    def evidence(self) -> Path:
        """Why training stopped: step-000123/rank-0/what.json, and beside it the state as a checkpoint.

        The state is that of rank 0 where it is the same on all ranks, and every rank's where it is not.
        """
        return self.root / "evidence"

    @property
    def prototypes(self) -> Path:
        """step-000000.safetensors, ...: prototypes and how each expert was judged, for the prototype distribution."""
        return self.root / "prototypes"

    @property
    def predictions(self) -> Path:
        """Greedy predictions of held-out tasks, as JSON."""
        return self.root / "predictions.json"

    def scratch(self, attempt: int, rank: int) -> "TrialFolder":
        """Where a worker trains when the trial lies in a storage; nobody else looks there."""
        return TrialFolder(self.root / "scratch" / f"attempt-{attempt:03d}" / f"rank-{rank}")

    @property
    def distributions(self) -> Path:
        """Histograms of learning cost and Goodness by layer, at evaluations: step-000100.json, ..., each of the steps
        from its own up to the next; not in an arm without Goodness."""
        return self.root / "distributions"

    @property
    def one_file_of_distributions(self) -> Path:
        """The same in one file, as it was before there were pieces; it is read and shipped where it is there."""
        return self.root / "distributions.json"

    @property
    def figures(self) -> Path:
        """What the user's own observer has drawn: <name>/step-000100.png, ..."""
        return self.root / "figures"

    @property
    def routing_maps(self) -> Path:
        """Which expert dominates at each token of a few held-out tasks: <n>/step-000100.safetensors, ..., n from 1."""
        return self.root / "routing_maps"

    @property
    def model(self) -> Path:
        """The trained model as MLflow keeps it: a folder, see `pipeline.training.model_file`."""
        return self.root / "model"

    @property
    def best_model(self) -> Path:
        """The same at the checkpoint with the lowest held-out loss; not there where that is the last one."""
        return self.root / "best_model"

    @property
    def placement(self) -> Path:
        """Where the last attempt's workers ran, as JSON: [{"rank": int, "node": address, "interface": name}, ...]."""
        return self.root / "placement.json"

    @property
    def driven(self) -> Path:
        """When the trial's driver took it up and was done with it, as JSON; see `pipeline.records.phases`."""
        return self.root / "driven.json"

    @property
    def ray(self) -> Path:
        """Ray Train's own state, which may hold the address of a storage with its password: for its owner alone."""
        return self.root / "ray"


def sqlite_uri(file: Path) -> str:
    """The address of a store in a file. What an address would read in another way than a path is escaped."""
    return f"sqlite:///{str(file.resolve()).replace('%', '%25').replace('?', '%3F')}"


@dataclass(frozen=True)
class Output:
    """All that the commands write lies under one folder, `--output`."""

    root: Path

    @property
    def data(self) -> Path:
        """A folder of Parquet shards for each prepared data set."""
        return self.root / "data"

    @property
    def tracking_uri(self) -> str:
        """The MLflow store used when no other is named."""
        return sqlite_uri(self.root / "mlflow.db")

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, when the default store is used."""
        return self.root / ARTIFACTS

    @property
    def server(self) -> Path:
        """What `tiny-onn server` keeps by default: mlflow.db, and artifacts/, which other machines send there."""
        return self.root / "mlflow-server"

    def sweep(self, name: str) -> Path:
        """The folder of a sweep."""
        return self.root / "sweeps" / name

    def phases(self, sweep: str) -> Path:
        """Where the wall time of the sweep's last command went, as JSON; see `pipeline.records.phases`."""
        return self.sweep(sweep) / "phases.json"

    def trial(self, sweep: str, key: str) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.sweep(sweep) / "trials" / key)
