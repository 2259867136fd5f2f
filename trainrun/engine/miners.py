"""The miner that a recipe asks for."""

from __future__ import annotations

from typing import Any

import torch

from trainrun.engine.mining import KeepAll, Miner
from trainrun.engine.rounds import Bootstrap
from trainrun.engine.sampling import Active, Sampler
from trainrun.engine.state import Plan
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data
from trainrun.parts.mining import make_rule
from trainrun.parts.mining.ohem import Ohem
from trainrun.parts.mining.rounds import Rounds
from trainrun.recipe.registry import Registry
from trainrun.recipe.schema import Recipe
from trainrun.world import World


def make_miner(
    recipe: Recipe, data: Data, plan: Plan, sampler: Sampler, world: World, model: torch.nn.Module, forward: Any, parts: Registry
) -> KeepAll:
    """The recipe's miner; raises UserError where the data or the length of the run does not suit it."""
    if isinstance(sampler, Active):
        return Bootstrap(sampler, plan, world)
    rule = make_rule(recipe.mining, data.classes, data.train.labels, parts)
    if rule is None or isinstance(rule, Rounds):
        return KeepAll()
    share = -(-plan.batch_size // world.size)
    if rule.passes == 1 and recipe.micro_batch is not None and recipe.micro_batch < share:
        raise UserError(f"mining.passes: 1 needs the whole batch in one pass, {share} pictures, and micro_batch is {recipe.micro_batch}; write passes: 2")
    has_its_time(rule, plan)
    return Miner(rule, data.train.labels, plan, world, model, forward, recipe.micro_batch)


def has_its_time(rule: Ohem, plan: Plan) -> None:
    """Raise UserError, beginning with the field, where there is no step between start and end."""
    start, end = (None if d is None else d.steps(plan.steps_per_epoch, plan.total) for d in (rule.start, rule.end))
    if end is not None and end <= (start or 0):
        raise UserError(f"mining.end: {rule.end} is step {end}, which does not come after start, step {start or 0}")
