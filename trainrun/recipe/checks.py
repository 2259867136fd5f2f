"""Every check of a recipe that is valid field by field, in the order in which faults are told."""

from __future__ import annotations

from trainrun.recipe.sense import Check
from trainrun.recipe.sense_augment import AUGMENT_CHECKS
from trainrun.recipe.sense_detection import DETECTION_CHECKS
from trainrun.recipe.sense_general import GENERAL_CHECKS
from trainrun.recipe.sense_initializer import INITIALIZER_CHECKS
from trainrun.recipe.sense_mining import MINING_CHECKS
from trainrun.recipe.sense_optimizer import OPTIMIZER_CHECKS
from trainrun.recipe.sense_schedules import SCHEDULE_CHECKS

CHECKS: tuple[Check, ...] = (
    *GENERAL_CHECKS,
    *AUGMENT_CHECKS,
    *OPTIMIZER_CHECKS,
    *INITIALIZER_CHECKS,
    *MINING_CHECKS,
    *DETECTION_CHECKS,
    *SCHEDULE_CHECKS,
)
