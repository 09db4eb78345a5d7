"""What every command imports stays small."""

import subprocess
import sys
from pathlib import Path

from tiny_onn.arms import GRANULARITY
from tiny_onn.learning_cost import learning_cost, learning_cost_names


def test_the_names_are_those_of_the_learning_costs() -> None:
    assert tuple(GRANULARITY) == learning_cost_names()
    for name, granularity in GRANULARITY.items():
        cost = learning_cost(name)
        assert granularity == ("control" if cost is None else cost.granularity)


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
