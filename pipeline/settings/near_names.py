"""The setting that somebody means who names one that there is not: by what other tools call it, or by a slip."""

import difflib
from collections.abc import Collection

_LEAST_LIKE = 0.75  # of two names' letters, for the one to be a slip of the other
_MOST_LETTERS = 100
_OPTION = "is an option of the command, not a setting"
# What other tools call a setting, or what they have and this one has not: what to say of it.
_ELSEWHERE = {
    **dict.fromkeys(("lr", "eta", "step_size", "base_lr", "max_lr"), "training.learning_rate"),
    **dict.fromkeys(("router_lr", "meta_lr", "lr_router"), "training.router_learning_rate"),
    **dict.fromkeys(("wd", "l2", "decay"), "training.weight_decay"),
    **dict.fromkeys(("dtype", "amp", "fp16", "bf16", "fp32", "mixed_precision", "autocast"), "training.precision"),
    **dict.fromkeys(
        ("max_steps", "num_steps", "n_steps", "total_steps", "iterations", "iters", "max_iters", "train_steps"),
        "training.steps",
    ),
    **dict.fromkeys(("warmup", "warm_up", "num_warmup_steps", "warmup_iters"), "training.warmup_steps"),
    **dict.fromkeys(("grad_clip", "clip_grad", "clip", "max_grad_norm", "gradient_clip_val"), "training.clip_norm"),
    **dict.fromkeys(
        ("lr_schedule", "lr_scheduler", "scheduler", "lr_decay", "lr_scheduler_type", "decay_lr"),
        "training.schedule; the one of a sweep that prunes trials is sweep.scheduler",
    ),
    **dict.fromkeys(("log_interval", "logging_steps", "log_freq", "log_every_n_steps"), "training.log_every"),
    **dict.fromkeys(("eval_interval", "eval_every", "eval_steps", "eval_freq", "val_every"), "training.evaluate_every"),
    **dict.fromkeys(
        ("save_every", "save_steps", "save_interval", "checkpoint_interval", "ckpt_every", "save_freq"),
        "training.checkpoint_every",
    ),
    **dict.fromkeys(("save_total_limit", "keep_last", "max_checkpoints"), "training.keep_checkpoints"),
    **dict.fromkeys(("torch_compile", "jit"), "training.compile"),
    **dict.fromkeys(("random_seed", "rng_seed", "manual_seed"), "training.seed; in a sweep, sweep.seeds"),
    "generate_tasks": "training.decode_tasks",
    "seed": "training.seed, in a sweep sweep.seeds; and data.seed, of the split and the views",
    **dict.fromkeys(("method", "routing", "variant", "algorithm"), "training.arm; in a sweep, sweep.arms"),
    **dict.fromkeys(
        ("batch_size", "bs", "batch", "train_batch_size", "per_device_train_batch_size", "global_batch_size"),
        "training.batch_tokens, as batches are counted in tokens",
    ),
    **dict.fromkeys(
        ("epochs", "num_epochs", "n_epochs", "max_epochs", "num_train_epochs", "epoch"),
        "training.steps, as length is counted in steps; `tiny-onn plan` says how many epochs they are",
    ),
    **dict.fromkeys(
        ("optimizer", "optimiser", "optim", "opt", "betas", "beta1", "beta2", "momentum", "adam_epsilon"),
        "training.optimizer; for its further options name a function of your own there",
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum", "accumulate", "accumulate_grad_batches", "micro_batch_size"),
        "training.micro_batches; a batch stays training.batch_tokens over all workers",
    ),
    **dict.fromkeys(
        ("dropout", "attention_dropout", "hidden_dropout", "dropout_rate"), "no setting: the model has no dropout"
    ),
    **dict.fromkeys(
        ("early_stopping", "patience"),
        "no setting: every trial takes training.steps; sweep.scheduler prunes samples that fall behind",
    ),
    **dict.fromkeys(
        ("devices", "num_devices", "n_gpus", "num_gpus", "gpu", "accelerator", "device", "cuda", "gpus_per_node"),
        "workers.gpus for GPUs a worker, and workers.count for the number of workers",
    ),
    **dict.fromkeys(
        ("num_workers", "n_workers", "world_size", "nproc_per_node", "nproc", "num_processes", "nodes", "num_nodes"),
        "workers.count; another count sees other batches",
    ),
    **dict.fromkeys(("num_cpus", "cpu", "threads", "num_threads"), "workers.cpus"),
    **dict.fromkeys(("timeout", "ddp_timeout"), "workers.timeout_s"),
    **dict.fromkeys(("retries", "max_retries", "max_restarts"), "workers.max_failures"),
    **dict.fromkeys(
        ("d_model", "hidden_size", "width", "dim", "embed_dim", "embedding_dim", "n_embd", "hidden_dim", "model_dim"),
        "model.hidden",
    ),
    **dict.fromkeys(
        ("experts", "num_experts", "n_experts", "num_local_experts"),
        "model.hidden, as each output row of a layer is an expert",
    ),
    **dict.fromkeys(("depth", "num_layers", "n_layers", "n_layer", "num_hidden_layers", "blocks"), "model.layers"),
    **dict.fromkeys(("n_heads", "num_heads", "n_head", "num_attention_heads", "nhead"), "model.heads"),
    **dict.fromkeys(
        ("k", "topk", "num_experts_per_tok", "sparsity", "capacity", "capacity_factor"),
        "model.density, the part of the experts that a token may use",
    ),
    **dict.fromkeys(("temperature", "scale", "logit_scale"), "model.gain"),
    **dict.fromkeys(
        ("max_length", "seq_len", "seq_length", "sequence_length", "context_length", "block_size", "max_seq_len"),
        "data.max_tokens",
    ),
    **dict.fromkeys(
        ("val_split", "validation_split", "val_fraction", "test_size", "valid_split", "eval_split"), "data.held_out"
    ),
    **dict.fromkeys(("augment", "augmentation", "augmentations"), "data.dihedral_views and data.colour_permutations"),
    **dict.fromkeys(
        ("data_dir", "data_path", "path", "dataset_path", "data_root"), "data.folder, with dataset: folder"
    ),
    **dict.fromkeys(("output", "output_dir", "out_dir", "outdir", "save_dir", "log_dir"), f"--output, which {_OPTION}"),
    **dict.fromkeys(("resume", "resume_from_checkpoint"), f"--resume, which {_OPTION}"),
    **dict.fromkeys(("tracking_uri", "mlflow_uri"), f"--tracking-uri, which {_OPTION}"),
    **dict.fromkeys(("mlflow_experiment", "experiment_name"), f"--mlflow-experiment, which {_OPTION}"),
    **dict.fromkeys(("run_name", "exp_name", "sweep_name"), "name"),
    **dict.fromkeys(
        ("project", "wandb", "report_to", "logger"),
        "no setting: runs are tracked in MLflow; --tracking-uri names the store",
    ),
}


def setting_hint(unknown: str, names: Collection[str]) -> str:
    """` (did you mean 'x'?)`, or ` (here: what to use)` where other tools call it so; "" where nothing is near.

    Args:
        unknown: a dotted name that is not a setting.
        names: the settings that there are.
    """
    group, _, last = unknown[:_MOST_LETTERS].rpartition(".")
    word = last.lower().replace("-", "_")
    if word in _ELSEWHERE:
        return f" (here: {_ELSEWHERE[word]})"
    near = _nearest(group, word, names)
    return f" (did you mean {near!r}?)" if near else ""


def known_elsewhere(word: str) -> str | None:
    """What there is here in place of a setting that other tools have; None where the word is unknown."""
    return _ELSEWHERE.get(word.lower().replace("-", "_").rpartition(".")[2])


def _nearest(group: str, last: str, names: Collection[str]) -> str | None:
    """The name with the same last word, or one like it; of several, that of the same group, or none."""
    by_last: dict[str, list[str]] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    for word in difflib.get_close_matches(last, by_last, n=3, cutoff=_LEAST_LIKE):
        names_of_word = by_last[word]
        same = [name for name in names_of_word if name.rpartition(".")[0] == group]
        if same or len(names_of_word) == 1:
            return (same or names_of_word)[0]
    whole = difflib.get_close_matches(f"{group}.{last}" if group else last, names, n=1, cutoff=0.85)
    return whole[0] if whole else None
