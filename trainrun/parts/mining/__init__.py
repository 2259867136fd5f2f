"""Mining: which examples are trained on. Importing this package registers every built-in part of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainrun.errors import UserError
from trainrun.parts.mining import ohem_rois  # noqa: F401  # registers it
from trainrun.parts.mining.ohem import Ohem
from trainrun.parts.mining.rounds import Rounds
from trainrun.recipe.registry import PartNode, Registry

if TYPE_CHECKING:
    import numpy as np


def make_rule(node: PartNode | None, classes: Sequence[str], labels: np.ndarray, parts: Registry) -> Ohem | Rounds | None:
    """A recipe's choice of pictures for classes with labels int64 [N], or None where all are trained on and in detection.

    Raises UserError, beginning with the field, where the data lacks what the choice needs.
    """
    part = node and parts.get("mining", node.name)
    if node is None or part is None or part.facts.get("task") != "classification":
        return None
    rule = parts.build(node)(classes)
    if rule.negative is None:
        return rule
    negatives = int((labels == rule.negative).sum())
    if not negatives:
        raise UserError(f"mining.negative_class: the data has no training pictures of class {classes[rule.negative]!r}")
    if isinstance(rule, Rounds):
        rule.sizes(len(labels) - negatives, negatives)
    return rule
