"""The options that several commands share, with their help."""

from pathlib import Path

import click

from pipeline.errors import UserError
from pipeline.renamed import current_words


class CommandWithOldNames(click.Command):
    """A command that also accepts its options' names of the last version, with a warning."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, with old names replaced."""
        return super().parse_args(ctx, current_words(args))


def _readable(_: click.Context, __: click.Parameter, folder: Path) -> Path:
    """The folder, if it is readable or does not exist yet."""
    try:
        (folder / "mlflow.db").stat()
    except (FileNotFoundError, NotADirectoryError):  # made, or refused, by who writes to it
        pass
    except OSError as error:
        raise UserError(f"--output {folder}: not readable ({error.strerror}); choose another folder.") from None
    return folder


CONFIG = click.argument("config", type=click.Path(path_type=Path))
OUTPUT = click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    callback=_readable,
    help="Folder for all output: data, checkpoints, MLflow's store, reports.",
)
SET = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a setting of CONFIG by its dotted name, for example --set training.steps=100, or several of a group: "
    "--set 'model={layers: 4}'. May be repeated.",
)
SCALE = click.option(
    "--scale", default=None, metavar="NAME", help="One of CONFIG's `scales`, for example gpu; --set overrides it."
)
ADDRESS = click.option(
    "--address", default=None, metavar="HOST:PORT", help="A Ray cluster. Default: this machine alone."
)
URI = click.option(
    "--tracking-uri",
    default=None,
    metavar="URI",
    help="MLflow's store, for example http://host:5000. Set user and password in MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD. Default: a SQLite file in the output folder.",
)
STORAGE = click.option(
    "--storage",
    default=None,
    metavar="URI",
    help="Where to keep data, checkpoints and the sweep's state for all machines: a shared folder, s3://bucket/prefix "
    "or another URI that pyarrow supports. --output then holds copies, and may be empty at first.",
)
EXPERIMENT = click.option(
    "--experiment", "mlflow_experiment", default="tiny-onn", show_default=True, help="MLflow experiment."
)
