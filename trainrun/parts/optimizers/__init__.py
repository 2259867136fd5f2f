"""Optimizers: torch's own, timm's and schedulefree's, with the decay kept off norms and biases unless it is asked for.

torch's Adafactor is left out: it reads two norms from the device for each parameter and step, for which the loop would wait.
"""

from trainrun.parts.optimizers import adaptive, classic, free, from_timm, matrices  # noqa: F401 - registers the parts
from trainrun.parts.optimizers.groups import make_optimizer, summary, weight_decay_factor, write_rates

__all__ = ["make_optimizer", "summary", "weight_decay_factor", "write_rates"]
