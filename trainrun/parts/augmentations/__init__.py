"""What is done to a batch of pictures on the device before the network sees it.

An augmentation takes uint8 pictures [B, C, H, W] in channels-last memory and a Draw with a row of random numbers a
sample, and returns pictures of the same kind: a sample's result depends on its own pixels and numbers alone, never on
the batch around it. A part with the fact `always=True` is also applied in evaluation.
"""

from trainrun.parts.augmentations import moves, scale
from trainrun.parts.augmentations.scale import Statistics

__all__ = ["Statistics", "moves", "scale"]
