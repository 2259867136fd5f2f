"""First weights that are made with the training pictures in view."""

from __future__ import annotations

import torch

from trainrun.draw import key, visits
from trainrun.engine.feed import Feed
from trainrun.engine.inputs import Inputs
from trainrun.engine.sampling import Sampler
from trainrun.parts.initializers import adapt
from trainrun.recipe.registry import Registry
from trainrun.recipe.schema import Recipe

_AT_ONCE = 64


def fit_to_data(model: torch.nn.Module, recipe: Recipe, training: Feed, inputs: Inputs, sampler: Sampler, parts: Registry) -> None:
    """Let an initializer that looks at data see pictures; a function of the recipe's seed and the data, and no other does anything.

    One that wants pictures as in training gets the first of the run's first epoch, in one batch no larger than the run's own (its
    micro-batches, where it has them); any other gets them evenly spaced over the training set, a few at a time. Every process looks at the
    same ones.
    """
    part = parts.get("initializer", recipe.initializer.name)
    if part is None or not part.facts.get("data"):
        return
    count, augmented = part.facts["pictures"], part.facts["augmented"]
    if augmented:
        ids = sampler(0)[: min(count, count if recipe.batch_size == "full" else recipe.batch_size, recipe.micro_batch or count)]
    else:
        ids = torch.linspace(0, len(training) - 1, min(count, len(training))).long()
    pieces = [ids] if augmented else list(ids.split(_AT_ONCE))
    again = visits(ids) if augmented else None
    batches = training(pieces, 0, map(len, pieces), None if again is None else [again], training=augmented)
    torch.manual_seed(key(recipe.seed, "init", "data") >> 1)
    adapt(model, recipe.initializer, (inputs(batch, augmented)[0] for batch in batches), parts)
