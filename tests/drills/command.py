"""`python -m tests.drills.command ...` is `tiny-onn ...`, but that workers meet the planted faults."""

import pipeline.training.worker
from pipeline.cli import main
from tests.drills.faults import train_with_faults

if __name__ == "__main__":
    pipeline.running.entry.train_fn_per_worker = train_with_faults
    main(prog_name="tiny-onn")
