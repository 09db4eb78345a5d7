"""The router learning rate at which each arm is at its best, from the results of `tuning.yaml`.

    python -m experiments.study.tuned                 of the sweep study-tuning in runs/
    python -m experiments.study.tuned --output DIR

Prints, for each arm, the mean held-out loss at every learning rate, and `sweep.arm_settings` with the best of them. An
arm that does not reach its density has another's loss: such rates count only where no rate reaches it.
"""

from typing import TYPE_CHECKING

import click
import yaml

from pipeline import api
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame

RATE, DENSITY = "training.router_learning_rate", "model.density"
NEAR = 0.2  # how far an arm may be from its density, as a part of it


def by_rate(results: "DataFrame") -> "DataFrame":
    """A row for each arm and learning rate: the mean held-out loss in nats, the largest distance from the density as a
    part of it, and how many trials; only rates that were run at every density and with every seed.

    Raises:
        UserError: the results do not vary the two settings.
    """
    for column in (RATE, DENSITY):
        if column not in results:
            raise UserError(f"the results have no column {column!r}: expected those of experiments/study/tuning.yaml.")
    rates = results[[RATE, DENSITY]].astype(float)
    frame = results.assign(rate=rates[RATE], missed=(results["density"] / rates[DENSITY] - 1).abs())
    table = frame.groupby(["arm", "rate"], sort=False).agg(
        loss=("held_out_loss", "mean"), missed=("missed", "max"), trials=("seed", "size")
    )
    return table[table["trials"] == table["trials"].max()].reset_index()


def best(rates: "DataFrame") -> dict[str, float]:
    """The learning rate of each arm with the lowest loss, among those that reach the density where there are any."""
    chosen = {}
    for arm, of_arm in rates.groupby("arm", sort=False):
        reaching = of_arm[of_arm["missed"] <= NEAR]
        some = reaching if len(reaching) else of_arm
        chosen[str(arm)] = float(some.loc[some["loss"].idxmin(), "rate"])
    return chosen


@click.command(help=__doc__)
@click.option("--sweep", default="study-tuning", show_default=True, help="Its name.")
@click.option("--output", default="runs", show_default=True, help="The folder of its runs.")
def main(sweep: str, output: str) -> None:
    """See the module."""
    try:
        rates = by_rate(api.results(sweep, output))
    except UserError as error:
        raise click.ClickException(str(error)) from error
    chosen = best(rates)
    edges = {rates["rate"].min(), rates["rate"].max()}
    click.echo(
        "| arm | router learning rate | held-out loss (nats) | furthest from its density | |\n| - | -: | -: | -: | - |"
    )
    for row in rates.itertuples():
        note = "" if chosen[row.arm] != row.rate else "best, at the edge of the range" if row.rate in edges else "best"
        click.echo(f"| {row.arm} | {row.rate:g} | {row.loss:.4f} | {100 * row.missed:.0f} % | {note} |")
    settings = {arm: {RATE: rate} for arm, rate in chosen.items()}
    click.echo("\n" + yaml.safe_dump({"arm_settings": settings}, sort_keys=False), nl=False)


if __name__ == "__main__":
    main()
