"""Initializers as a recipe names them, applied to small networks, and the test of a sample's variance."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import chi2
from torch import nn

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.parts.initializers import initialize
from trainrun.recipe.registry import PartNode, registry

ODDS = 1e-4  # chance that a correct initializer fails a test here, were the seed not fixed


def bare(name: str, **options: Any) -> PartNode:
    """An initializer as it stands in a rule."""
    part = registry.get("initializer", name)
    assert part is not None
    valid = part.bare_options.model_validate(options)
    return PartNode("initializer", name, {option: getattr(valid, option) for option in type(valid).model_fields})


def node(name: str, **options: Any) -> PartNode:
    """An initializer as a recipe holds it."""
    part = registry.get("initializer", name)
    assert part is not None
    valid = part.options.model_validate(options)
    return PartNode("initializer", name, {option: getattr(valid, option) for option in type(valid).model_fields})


def draw(model: nn.Module, name: str, **options: Any) -> None:
    """Initialize a network as the run does."""
    initialize(model, node(name, **options))


def variance_is(sample: torch.Tensor, variance: float, mean: float = 0.0) -> None:
    """Accept unless the sum of squares lies outside the 1 - ODDS interval of chi-square for that variance."""
    n = sample.numel()
    statistic = (sample.double() - mean).square().sum().item() / variance
    low, high = chi2.ppf([ODDS / 2, 1 - ODDS / 2], n)
    assert low < statistic < high, f"variance {statistic * variance / n:.5g} of {n} weights, expected {variance:.5g}"
