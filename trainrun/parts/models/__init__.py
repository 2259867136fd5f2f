"""The networks: a part builds one from (shape, classes) and returns a module that maps [B, C, H, W] to logits [B, classes].

One with the fact task="detection" (detection.py) maps lists of pictures to losses in training and to boxes in evaluation.

The parts stand here without torch; the modules they build are in `nets`, which is imported when one is built.
"""

from trainrun.parts.models import convnets, detection, published, residual

__all__ = ["convnets", "detection", "published", "residual"]
