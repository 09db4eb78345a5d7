"""A sweep whose delivery an older version began goes on in the same runs."""

import json
from pathlib import Path

from pipeline.layout import Output
from pipeline.records.delivery import OLDER_FILE, read_delivery
from tests.pipeline.sweep_samples import EXTRA, write_spool
from tests.pipeline.tracking.tracked import points, runs, tracker_of, trial_of


def test_a_delivery_that_an_older_version_began_goes_on_in_its_run(tmp_path: Path) -> None:
    output = Output(tmp_path)
    trial, folder = trial_of(output, "older")
    write_spool(trial, folder, (0, 10))
    first = tracker_of(output)
    run_id = first.start_trial(folder, trial, "older", EXTRA).run_id
    known = read_delivery(folder.delivery)
    assert known is not None
    older = folder.delivery.with_name(OLDER_FILE)
    folder.delivery.write_text(json.dumps({"creation_key": known.creation_key, "run_id": run_id, "described": run_id}))
    older.write_text(json.dumps({"run_id": run_id, "offset": known.offset, "figures": [], "ended": None}))
    write_spool(trial, folder, (0, 10, 20))
    again = tracker_of(output)
    delivery = again.start_trial(folder, trial, "older", EXTRA)
    assert delivery.run_id == run_id
    again.end_trial(delivery, "FINISHED")
    assert [step for step, _ in points(output, run_id, "train/task_loss")] == [0, 10, 20]
    assert len(runs(output, "older")) == 1
    assert not older.exists()
    now = read_delivery(folder.delivery)
    assert now is not None
    assert (now.creation_key, now.run_id, now.ended) == (known.creation_key, run_id, "FINISHED")
    assert now.offset == folder.spool.stat().st_size
