"""What every command imports stays small."""

import subprocess
import sys
from pathlib import Path

from tiny_onn.arm import ARMS
from tiny_onn.arms import ALIASES, ARM_FACTS, canonical


def test_the_names_and_facts_are_those_of_the_arms() -> None:
    assert set(ARM_FACTS) == set(ARMS)
    for name, facts in ARM_FACTS.items():
        cost = ARMS[name].cost
        assert facts.granularity == ("none" if cost is None else cost.granularity)
        assert facts.baseline == (cost is None)
    assert {canonical(old) for old in ALIASES} <= set(ARM_FACTS)


def test_settings_and_help_are_read_without_torch() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\n"
        "import pipeline.api\nimport pipeline.settings.config\nfrom pipeline.cli import main\n"
        "for words in ([], ['ablate'], ['bench', 'step']):\n"
        "    assert CliRunner().invoke(main, [*words, '--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
