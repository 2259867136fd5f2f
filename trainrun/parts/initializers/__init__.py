"""Initializers: how the weights of convolutions and linear layers are drawn before the first step."""

from trainrun.parts.initializers.apply import initialize
from trainrun.parts.initializers.fans import kaiming_normal
from trainrun.parts.initializers.fills import constant, default, normal, zeros

__all__ = ["constant", "default", "initialize", "kaiming_normal", "normal", "zeros"]
