"""Initializers: how the weights of convolutions, linear and attention layers are drawn before the first step."""

from trainrun.parts.initializers import fills, fans, structured, data_driven  # noqa: F401, I001 - registers the parts, in the order of lists
from trainrun.parts.initializers.apply import adapt, initialize

__all__ = ["adapt", "initialize"]
