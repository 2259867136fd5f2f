"""Optimizers: torch's own, timm's and schedulefree's, with the decay kept off norms and biases unless it is asked for.

torch's Adafactor is left out: it reads two norms from the device for each parameter and step, for which the loop would wait.
"""

# In the order of `trainrun list`.
# isort: off
from trainrun.parts.optimizers.classic import sgd, rmsprop, adagrad
from trainrun.parts.optimizers.adaptive import adam, adamw, nadam, radam
from trainrun.parts.optimizers.matrices import muon
from trainrun.parts.optimizers.free import schedule_free_adamw, schedule_free_sgd
from trainrun.parts.optimizers.from_timm import lamb, lion
from trainrun.parts.optimizers.groups import make_optimizer, summary, weight_decay_factor, write_rates
# isort: on

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "lamb",
    "lion",
    "make_optimizer",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "summary",
    "weight_decay_factor",
    "write_rates",
]
