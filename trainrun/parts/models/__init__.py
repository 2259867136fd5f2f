"""The networks: a part builds one from (shape, classes) and returns a module that maps [B, C, H, W] to logits [B, classes].

The parts stand here without torch; the modules they build are in `nets`, which is imported when one is built.
"""

from trainrun.parts.models import convnets, published, residual

__all__ = ["convnets", "published", "residual"]
