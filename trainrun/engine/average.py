"""The weights that are evaluated and kept: the model's own, their exponential moving average, or one that the optimizer keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch

from trainrun.recipe import schema
from trainrun.recipe.registry import Registry, registry

Pair = tuple[torch.Tensor, torch.Tensor]


class Plain:
    """No average: the model itself is what is evaluated."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def update(self, step: int) -> None:
        """Nothing to follow."""


class Ema(Plain):
    """average = d average + (1 - d) weights after each step, of parameters and floating-point buffers; other buffers are copied.

    d = decay, or min(decay, (1 + t) / (10 + t)) at step t with `warmup` (TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: torch.nn.Module, options: schema.Ema) -> None:
        super().__init__(copy.deepcopy(model).requires_grad_(False))
        self.options = options
        averages, weights = (m.state_dict(keep_vars=True).values() for m in (self.model, model))
        pairs = {id(mine): (mine, theirs) for mine, theirs in zip(averages, weights, strict=True)}.values()  # tied ones only once
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after step `step`, counted from 1."""
        decay = min(self.options.decay, (1 + step) / (10 + step)) if self.options.warmup else self.options.decay
        torch._foreach_lerp_([mine for mine, _ in self._averaged], [theirs for _, theirs in self._averaged], 1 - decay)
        for mine, theirs in self._copied:
            mine.copy_(theirs)


class OfOptimizer(Plain):
    """The average that the optimizer keeps in its own state, written out after each step; buffers are copied.

    write: fills the first of each pair of tensors with the average of the second, a parameter.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, write: Callable[[torch.optim.Optimizer, Iterable[Pair]], None]
    ) -> None:
        super().__init__(copy.deepcopy(model).requires_grad_(False))
        self.optimizer, self.write = optimizer, write
        self._averaged = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._copied = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after a step."""
        self.write(self.optimizer, self._averaged)
        for mine, theirs in self._copied:
            mine.copy_(theirs)


def make_average(recipe: schema.Recipe, model: torch.nn.Module, optimizer: torch.optim.Optimizer, parts: Registry = registry) -> Plain:
    """The recipe's average of a model under an optimizer, at step 0."""
    part = parts.get("optimizer", recipe.optimizer.name)
    if part and "averages" in part.facts:
        return OfOptimizer(model, optimizer, part.facts["averages"])
    return Ema(model, recipe.ema) if recipe.ema else Plain(model)
