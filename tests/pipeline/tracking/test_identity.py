"""Two sweeps of one name are never put together: a sweep's runs are known by its id."""

import io
import json
import shutil
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

import pipeline.running.claim as claiming
from pipeline import api
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.layout import Output
from pipeline.records.sweep_record import sweep_id
from pipeline.reporting.results import Results, read_results
from pipeline.running.claim import claim
from pipeline.tracking.describe import SWEEP_ID
from pipeline.tracking.destination import Destination, remember
from pipeline.tracking.file_report import file_report_on_summary
from pipeline.tracking.find_runs import find_sweep, recorded_id
from pipeline.tracking.leaderboard import report_links, share_leaderboard
from pipeline.tracking.store import open_store
from pipeline.tracking.sync import sync
from tests.pipeline.delivery_samples import begin, leave
from tests.pipeline.sweep_samples import EXTRA

HERE = Destination()


@pytest.fixture
def output(tmp_path, with_store):
    return with_store(tmp_path / "o")


def run(output: Output, name: str, seeds: tuple[int, ...], uri: str | None = None, status: str = "FINISHED") -> None:
    """A sweep of one arm as its command leaves it, delivered."""
    destination = Destination(uri)
    for trial, folder in begin(output, name, destination, arms=("per_token",), seeds=seeds):
        leave(trial, folder, status)
    sync(output, name, None, None, lambda *_: [])


def results(output: Output, name: str, uri: str | None = None) -> Results:
    uri = uri or output.tracking_uri
    return read_results(uri, HERE.experiment, name, recorded_id(output, uri, name))


def test_a_removed_sweep_of_the_same_name_is_in_no_mean(output):
    run(output, "again", (0, 1))
    shutil.rmtree(output.sweep("again"))  # as the command itself advises
    run(output, "again", (2,))
    read = results(output, "again")
    assert (read.total, read.finished, read.older) == (1, 1, 0)
    assert [sorted(row.trials) for row in read.rows] == [[2]]


def test_two_users_of_one_server_each_see_their_own(tmp_path, with_store):
    store = with_store(tmp_path / "server")
    mine, theirs = Output(tmp_path / "mine"), Output(tmp_path / "theirs")
    run(mine, "same", (0,), store.tracking_uri)
    run(theirs, "same", (0, 1), store.tracking_uri)
    assert results(mine, "same", store.tracking_uri).finished == 1
    assert results(theirs, "same", store.tracking_uri).finished == 2
    nowhere = Output(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"2 sweeps of the name 'same'.*\n.*: 1 trials.*\n.*: 2 trials.*\n.*--sweep-id"):
        results(nowhere, "same", store.tracking_uri)
    with pytest.raises(UserError, match="2 sweeps of the name 'same'"):
        file_report_on_summary(store.tracking_uri, HERE.experiment, "same", [])
    known = sweep_id(theirs.sweep("same"))
    assert read_results(store.tracking_uri, HERE.experiment, "same", known).finished == 2
    assert file_report_on_summary(store.tracking_uri, HERE.experiment, "same", [], known)
    with pytest.raises(UserError, match="no sweep 'same' with the id 0000"):
        read_results(store.tracking_uri, HERE.experiment, "same", "0000")

    client = open_store(store.tracking_uri)
    experiment_id = client.get_experiment_by_name(HERE.experiment).experiment_id
    share_leaderboard(client, experiment_id)
    told = client.get_experiment(experiment_id).tags["mlflow.sharedViewState.arms"]
    assert _groups(told) == ["sweep_id", "arm"]
    links = report_links(client, "http://127.0.0.1:1", experiment_id)
    assert set(links) == {f"summary of same ({sweep_id(each.sweep('same'))})" for each in (mine, theirs)}


def test_a_sweep_is_known_by_its_id_and_by_the_first_digits_of_it(tmp_path, with_store, monkeypatch):
    store = with_store(tmp_path / "server")
    uri, ids = store.tracking_uri, ["abcd1" + "0" * 27, "abcd2" + "0" * 27, "ef01" + "0" * 28]
    left = iter(ids)
    monkeypatch.setattr(claiming, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=next(left))))
    for folder, name, seeds in (("one", "same", (0, 1)), ("two", "same", (0, 1, 2)), ("three", "cafe", (0,))):
        run(Output(tmp_path / folder), name, seeds, uri)

    def found(word: str, named: str | None = None) -> tuple[str, str | None]:
        return find_sweep(uri, HERE.experiment, word, named)

    assert found("same") == ("same", None)  # which, is the record's to say
    assert found("cafe") == ("cafe", None)  # a name first, though it could be an id
    assert found("same@abcd2") == found("abcd20") == found("same", "abcd2000") == ("same", ids[1])
    assert found("ef01") == found("cafe@ef01") == found("cafe", ids[2]) == ("cafe", ids[2])
    several = (
        r"begins those of 2 sweeps {}in MLflow:\n  {}abcd10+: 2 trials.*\n  {}abcd20+: 3 trials.*\nGive more of it"
    )
    with pytest.raises(UserError, match=several.format("'same' ", "", "")):
        found("same@abcd")
    with pytest.raises(UserError, match=several.format("", "same@", "same@")):
        found("abcd")
    with pytest.raises(UserError, match=r"no sweep 'same' with the id ef01; there are:\n  abcd1.*\n  abcd2"):
        found("same@ef01")
    with pytest.raises(UserError, match=r"no sweep with the id 0123; there are:\n  same@abcd1.*\n.*\n  cafe@ef01"):
        found("0123")
    with pytest.raises(UserError, match=r"the id 'ab' is too short.*There are:\n  abcd1"):
        found("same@ab")
    with pytest.raises(UserError, match=r"no sweep 'same' with runs without an id; there are:\n  abcd1"):
        found("same", "none")

    options = ["--output", str(tmp_path / "here"), "--tracking-uri", uri]
    done = CliRunner().invoke(main, ["report", "same@abcd1", "same@abcd2", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "same@abcd2000 less same@abcd1000, paired by arm, setting and seed." in done.output
    folder = tmp_path / "here" / "sweeps" / "same" / "report"
    assert (folder / "less-same@abcd1000.csv").read_text().count("\n") == 3  # a heading, and two seeds that both have
    for words, said in (
        (["same@abcd1", "abcd10"], "are the same sweep"),
        (["same", "cafe"], "2 sweeps of the name 'same'"),
        (["../x@abcd1"], "SWEEP: found '../x'"),
    ):
        refused = CliRunner().invoke(main, ["report", *words, *options])
        assert refused.exit_code == 2
        assert said in refused.output
    made = api.report("abcd2", tmp_path / "here", tracking_uri=uri, console=Console(file=io.StringIO()))
    assert made.results.finished == 3
    assert len(api.results("same", tmp_path / "here", tracking_uri=uri, sweep_id="abcd1")) == 2


def test_an_old_run_does_not_stand_in_for_a_failed_new_one(output):
    run(output, "failed", (0,))
    (folder,) = output.sweep("failed").glob("trials/*")
    shutil.rmtree(folder)  # the trial alone, to be run anew
    trial, place = begin_again(output, "failed")
    leave(trial, place, "FAILED")
    sync(output, "failed", None, None, lambda *_: [])
    read = results(output, "failed")
    assert read.statuses == {"FAILED": 1}
    assert (read.older, read.rows) == (1, [])


def test_runs_from_before_there_were_ids_stay_readable(output):
    run(output, "old", (0, 1))
    client = open_store(output.tracking_uri)
    experiment_id = client.get_experiment_by_name(HERE.experiment).experiment_id
    for each in client.search_runs([experiment_id], "tags.sweep = 'old'"):
        client.delete_tag(each.info.run_id, SWEEP_ID)
    record = output.sweep("old") / "sweep.json"
    whole = json.loads(record.read_text())
    del whole["id"]
    record.write_text(json.dumps(whole))
    (output.sweep("old") / "tracking.json").unlink()
    assert results(output, "old").finished == 2
    remember(output.sweep("old"), HERE, EXTRA)
    sync(output, "old", None, None, lambda *_: [])
    assert results(output, "old").finished == 2
    shutil.rmtree(output.sweep("old"))
    assert results(output, "old").finished == 2  # from MLflow alone
    run(output, "old", (2,))
    assert results(output, "old").finished == 1
    assert read_results(output.tracking_uri, HERE.experiment, "old", "").finished == 2


@pytest.mark.parametrize("also_gone", [False, True])
def test_a_lost_record_loses_no_run(output, also_gone):
    run(output, "lost", (0, 1))
    known = sweep_id(output.sweep("lost"))
    (output.sweep("lost") / "sweep.json").unlink()
    if also_gone:
        (output.sweep("lost") / "tracking.json").unlink()
    for trial, place in samples(output, "lost", (0, 1)):
        place.config.write_text(trial.experiment.model_dump_json())
    begin_again(output, "lost", (0, 1))
    assert (sweep_id(output.sweep("lost")) == known) is not also_gone
    sync(output, "lost", None, None, lambda *_: [])
    assert results(output, "lost").finished == 2


def test_the_record_beside_a_store_says_which_sweep_it_is(output, tmp_path):
    run(output, "beside", (0,))
    shutil.rmtree(output.sweep("beside"))
    run(output, "beside", (1,))
    assert results(Output(tmp_path / "elsewhere"), "beside", output.tracking_uri).finished == 1


def samples(output: Output, name: str, seeds: tuple[int, ...] = (0,)):
    from tests.pipeline.sweep_samples import experiment, trials

    return trials(output, experiment(name, arms=("per_token",), seeds=seeds))


def begin_again(output: Output, name: str, seeds: tuple[int, ...] = (0,)):
    """Claims the folder as `--resume` does; the first trial."""
    from tests.pipeline.sweep_samples import experiment

    claim(output.sweep(name), experiment(name, arms=("per_token",), seeds=seeds), EXTRA["data_hash"], True, "")
    return samples(output, name, seeds)[0]


def _groups(told: str) -> list[str]:
    import base64
    import zlib

    packed = json.loads(told)["state"].partition(";")[2]
    view = json.loads(zlib.decompress(base64.b64decode(packed)))
    return [key["groupByData"] for key in view["groupBy"]["groupByKeys"]]
