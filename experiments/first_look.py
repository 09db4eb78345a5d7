# %% [markdown]
# # A first look
# The ablation at tiny size, from a notebook: what it would take, running it, its numbers as tables and curves. It needs
# `pip install 'tiny-onn[notebook]'`, and takes about two minutes on two cores: one worker a trial and one seed, where
# `tiny-onn ablate smoke` has two of each. The same as a Python file is
# `experiments/first_look.py`; `make notebook` makes the notebook from it, and runs it.

# %%
from pipeline.api import ablate, plan, report, train
from pipeline.reporting.frontier_figure import loss_over_density

CONFIG = "experiments/smoke.yaml"
CHANGES = {
    "name": "first-look",
    "training.steps": 40,
    "workers.count": 1,
    "sweep.arms": ["per_token", "aggregated", "task_only"],
    "sweep.seeds": [0],
}
OUTPUT = "runs"

# %% [markdown]
# What would run? With `calibrate=True`, the default, a few steps of each kind of trial are timed too.

# %%
forecast = plan(CONFIG, CHANGES, OUTPUT, calibrate=False)
print(f"{forecast.trials} trials, {forecast.at_once} at once")

# %% [markdown]
# Run it. Run this cell again after an interruption, and it goes on where it stopped.

# %%
outcome = ablate(CONFIG, CHANGES, OUTPUT)

# %% [markdown]
# A row for each trial. Within a seed, trials have the same first weights and the same batches, so that the arms are
# compared in pairs.

# %%
frame = outcome.results()
print(frame[["arm", "seed", "held_out_loss", "active_first", "active_middle", "active_last"]].round(3).to_string())
paired = frame.pivot(index="seed", columns="arm", values="active_middle")
print(paired.sub(paired["per_token"], axis=0).add_prefix("middle layer, more active than per_token: ").T)

# %% [markdown]
# How did the activation of the middle layer come about?

# %%
curves = outcome.curves("activation_rate/L1")
axes = curves.plot(xlabel="step", ylabel="activation rate, middle layer")
axes.figure.savefig(f"{OUTPUT}/first_look.png")

# %% [markdown]
# One model more, with another setting, in a run of its own.

# %%
alone = train(CONFIG, {**CHANGES, "name": "first-look-wide", "model.hidden": 32}, OUTPUT)
print(alone.results()[["arm", "seed", "held_out_loss"]])

# %% [markdown]
# The report once more, from MLflow; `tiny-onn ui` shows the runs themselves.

# %%
made = report("first-look", OUTPUT)
print(made.findings[0])

# %% [markdown]
# Loss against density, every trial a dot: arms are compared at equal density, never by their losses alone.

# %%
loss_over_density(made.results)
