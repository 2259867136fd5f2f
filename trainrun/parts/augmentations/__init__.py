"""What is done to a batch of pictures on the device before the network sees it.

An augmentation takes uint8 pictures [B, C, H, W] in channels-last memory and a Draw with a row of random numbers a
sample, and returns pictures of the same kind: a sample's result depends on its own pixels and numbers alone, never on
the batch around it. A part with the fact `always=True` is also applied in evaluation; one with `levels=True` works on levels
0..255 only; one with `mixes=True` comes last, mixes pictures in pairs, and takes and returns their targets too (mixing.py).

A part with the fact `geometry=True` takes (height, width) and the Draw, and returns where its pixels come from
(`geometry.py`); those that stand together are carried out as one. Its fact `evaluation=f` names what takes its place in
evaluation, a function of the same arguments. One with `cuts=True` gives one size whatever the shape, in evaluation too; standing first,
it can be carried out where pictures are decoded. Boxes follow these parts (`boxes.py`); one with the fact `moves=True` moves pixels
without saying where to, so it suits labels of whole pictures only.
"""

from trainrun.parts.augmentations import boxes, colour, crops, mixing, moves, noise, policies, scale, warps
from trainrun.parts.augmentations.scale import Statistics

__all__ = ["Statistics", "boxes", "colour", "crops", "mixing", "moves", "noise", "policies", "scale", "warps"]
