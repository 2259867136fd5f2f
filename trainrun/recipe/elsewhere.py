"""What other libraries call the things that a recipe names: so a person who knows torch, torchvision, timm or Keras is told our word for it.

A name that is only spelt otherwise (RandomCrop, multi_step) is found by its spelling; here are those that are other words, or nearer to a wrong one.
"""

from __future__ import annotations

import re

_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "initializer": {
        "kaiming_normal": ("he", "he_normal", "kaiming", "msra"),
        "kaiming_uniform": ("he_uniform",),
        "kaiming_normal with nonlinearity: linear": ("lecun_normal", "lecun"),
        "kaiming_uniform with nonlinearity: linear": ("lecun_uniform",),
        "xavier_normal": ("glorot_normal",),
        "xavier_uniform": ("glorot", "glorot_uniform", "xavier"),
        "trunc_normal": ("truncated_normal",),
        "normal": ("random_normal", "gaussian"),
        "uniform": ("random_uniform",),
        "constant with value: 1": ("ones",),
        "dirac": ("eye", "identity"),
        "default": ("none",),
    },
    "warmup": {"gradual": ("linear", "linear_lr", "linear_warmup"), "constant": ("constant_lr",), "none": ("no", "off")},
    "decay": {
        "constant": ("none", "no", "off", "constant_lr"),
        "step": ("step_lr",),
        "multistep": ("piecewise", "piecewise_constant", "piecewise_constant_decay"),
        "exponential": ("exponential_lr", "exponential_decay"),
        "inverse_sqrt": ("noam", "rsqrt"),
        "polynomial": ("poly",),
        "linear": ("linear_lr", "linear_decay"),
        "one_cycle": ("super_convergence",),
        "trapezoid": ("wsd", "warmup_stable_decay"),
        "triangular": ("cyclic", "cyclic_lr"),
        "plateau": ("reduce_lr_on_plateau", "reduce_on_plateau"),
        "cosine": ("cosine_annealing", "cosine_annealing_lr", "cosine_decay", "cosine_lr"),
        "cosine_restarts": ("cosine_annealing_warm_restarts", "cosine_decay_restarts", "sgdr"),
    },
    "optimizer": {"sgd": ("momentum", "nesterov"), "schedule_free_adamw": ("schedule_free",)},
    "augment": {
        "horizontal_flip": ("flip", "fliplr", "hflip", "mirror", "random_flip"),
        "vertical_flip": ("flipud", "vflip"),
        "random_erasing": ("cutout",),
        "shift": ("translate", "random_translation"),
        "random_scale": ("zoom", "random_zoom"),
        "pca_jitter": ("lighting", "pca"),
        "gaussian_noise": ("noise",),
        "gaussian_blur": ("blur",),
    },
    "loss": {
        "cross_entropy": ("ce", "categorical_crossentropy", "nll", "nll_loss", "softmax", "sparse_categorical_crossentropy"),
        "cross_entropy with label_smoothing": ("label_smoothing", "label_smoothing_cross_entropy"),
    },
    "sampler": {
        "shuffle": ("random", "random_sampler"),
        "weighted": ("weighted_random_sampler",),
        "class_balanced": ("balanced", "effective_number"),
        "subset": ("subset_random_sampler",),
    },
    "mining": {"ohem": ("hard_example_mining", "online_hard_example_mining"), "rounds": ("bootstrap", "bootstrapping", "hard_negative_mining")},
}

_OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {
        "root": ("data_dir", "dir", "directory", "folder", "path"),
        "validation": ("val", "val_size", "val_split", "validation_split"),
        "size": ("image_size", "img_size", "input_size", "resize"),
        "workers": ("num_workers",),
    },
    "model": {"weights": ("pretrained", "checkpoint"), "dropout": ("drop_rate",)},
    "initializer": {"slope": ("a", "negative_slope"), "std": ("stddev", "sigma"), "low": ("a", "minval"), "high": ("b", "maxval")},
    "optimizer": {
        "alpha": ("rho", "smoothing"),
        "betas": ("beta1", "beta2", "beta_1", "beta_2"),
        "eps": ("epsilon",),
        "weight_decay": ("decay", "l2", "wd"),
        "match": ("names", "params"),
        "lr_scale": ("lr", "lr_mult"),
    },
    "warmup": {
        "for": ("duration", "epochs", "iters", "length", "steps", "total_iters", "warmup_epochs", "warmup_steps"),
        "start": ("init_lr", "start_factor", "warmup_init_lr", "warmup_lr"),
    },
    "decay": {
        "at": ("boundaries", "milestones"),
        "every": ("step_size", "decay_epochs"),
        "rate": ("decay_rate", "gamma"),
        "gamma": ("decay_rate", "factor"),
        "steps": ("T_max", "decay_steps", "epochs", "max_steps", "total_iters", "total_steps"),
        "alpha": ("eta_min", "final_div_factor", "end_factor"),
        "end": ("end_learning_rate", "eta_min"),
        "first": ("T_0", "first_decay_steps"),
        "multiplier": ("T_mult", "t_mul"),
        "peaks": ("m_mul",),
        "rise": ("pct_start",),
        "initial": ("div_factor",),
        "shape": ("anneal_strategy",),
        "monitor": ("metric",),
        "min_delta": ("threshold",),
    },
    "augment": {
        "p": ("prob", "probability"),
        "mode": ("padding_mode",),
        "aspect": ("ratio",),
        "shift": ("translate",),
        "distortion": ("distortion_scale",),
        "ops": ("num_ops",),
        "std": ("stddev", "sigma"),
    },
    "sampler": {"weights": ("class_weights",), "count": ("num_samples",)},
    "loss": {"label_smoothing": ("smoothing", "eps")},
    "mining": {"keep": ("fraction", "keep_ratio", "share", "top_k"), "negative_class": ("background", "negative")},
}

_FIELDS: dict[str, tuple[str, ...]] = {
    "augment": ("augmentation", "augmentations", "cutmix", "mixup", "transform", "transforms"),
    "batch_size": ("bs",),
    "clip": ("clip_grad", "clip_grad_norm", "grad_clip", "gradient_clip_val", "max_grad_norm"),
    "micro_batch": ("accumulate_grad_batches", "accumulation", "accumulation_steps", "grad_accum", "gradient_accumulation_steps"),
    "epochs": ("iterations", "max_steps", "steps", "total_steps"),
    "precision": ("amp", "bf16", "fp16", "mixed_precision"),
    "loss": ("criterion",),
    "initializer": ("init", "initialization", "weight_init"),
    "model": ("arch", "architecture", "backbone", "net", "network"),
    "ema.decay": ("ema_decay", "model_ema_decay"),
    "schedule.lr": ("learning_rate",),
    "schedule.warmup": ("warmup_epochs", "warmup_steps"),
    "schedule.decay.steps": ("T_max",),
    "early_stopping.monitor": ("metric",),
    "checkpoint.every": ("save_every",),
    "evaluate.every": ("eval_every", "validate_every"),
}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _by_name(ours: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for our, theirs in ours.items():
        for name in theirs:
            found.setdefault(_plain(name), []).append(our)
    return found


PART_NAMES = {kind: _by_name(names) for kind, names in _PARTS.items()}
OPTION_NAMES = {kind: _by_name(names) for kind, names in _OPTIONS.items()}
FIELD_NAMES = _by_name(_FIELDS)


def part_called(kind: str, name: str) -> str | None:
    """The part of a kind that goes by another name elsewhere, if it is known."""
    return next(iter(PART_NAMES.get(kind, {}).get(_plain(name), ())), None)


def option_called(kind: str, name: str, own: list[str]) -> str | None:
    """Which of a part's `own` options goes by another name elsewhere, if it is known."""
    return next((our for our in OPTION_NAMES.get(kind, {}).get(_plain(name), ()) if our in own), None)


def field_called(name: str) -> str | None:
    """The dotted path of the setting that goes by another name elsewhere, if it is known."""
    return next(iter(FIELD_NAMES.get(_plain(name), ())), None)
