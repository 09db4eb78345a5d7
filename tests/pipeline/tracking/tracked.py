"""A SQLite store in an output folder, and what it has of a sweep."""

from pipeline.layout import Output, TrialFolder
from pipeline.records.delivery import DeliveryState, read_delivery, write_delivery
from pipeline.settings.trials import Trial
from pipeline.tracking.store import open_store
from pipeline.tracking.tracker import Tracker
from tests.pipeline.sweep_samples import experiment, trials


def tracker_of(output: Output) -> Tracker:
    """A tracker as a command opens it, which remembers nothing of those before."""
    return Tracker(output.tracking_uri, "tests", output.artifacts)


def trial_of(output: Output, name: str) -> tuple[Trial, TrialFolder]:
    """The first trial of the sweep of that name."""
    return trials(output, experiment(name))[0]


def points(output: Output, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, as the store has it."""
    return [(point.step, point.value) for point in open_store(output.tracking_uri).get_metric_history(run_id, name)]


def runs(output: Output, name: str) -> list:
    """The runs of a sweep."""
    client = open_store(output.tracking_uri)
    experiment = client.get_experiment_by_name("tests")
    return list(client.search_runs([experiment.experiment_id], f"tags.sweep = '{name}'"))


def forget_what_was_sent(folder: TrialFolder) -> None:
    """As if the driver had died after the store took it, and before it could note it."""
    known = read_delivery(folder.delivery)
    assert known is not None
    write_delivery(folder.delivery, DeliveryState(known.creation_key, known.run_id))


def down(*_args: object, **_more: object) -> None:
    """In place of a call to the store."""
    raise ConnectionError("the server is away")
