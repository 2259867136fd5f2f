"""What is done to a batch of pictures on the device before the network sees it.

An augmentation takes uint8 pictures [B, C, H, W] in channels-last memory and a Draw with a row of random numbers a
sample, and returns pictures of the same kind: a sample's result depends on its own pixels and numbers alone, never on
the batch around it. A part with the fact `always=True` is also applied in evaluation; one with `levels=True` works on levels
0..255 only; one with `mixes=True` comes last, mixes pictures in pairs, and takes and returns their targets too (mixing.py).
"""

from trainrun.parts.augmentations import colour, mixing, moves, noise, policies, scale
from trainrun.parts.augmentations.scale import Statistics

__all__ = ["Statistics", "colour", "mixing", "moves", "noise", "policies", "scale"]
