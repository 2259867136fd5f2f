"""Randomness as a pure function of (seed, epoch, sample id, purpose): nothing to save, nothing to fast-forward.

A 64-bit counter-based generator: the finaliser of SplitMix64 (Steele, Lea & Flood 2014, in Stafford's variant 13)
applied to a keyed counter, once for (seed, epoch, sample id) and once more for (purpose, lane). Each application is a
bijection of 64-bit integers, written with torch's wrapping int64 arithmetic, so a sample's numbers are the same on every
device, in every batch, process and worker.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_FEW = 64  # lanes whose keys are quicker made one by one


def _signed(value: int) -> int:
    """The same 64 bits as the int64 that torch computes with."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(x: torch.Tensor) -> torch.Tensor:
    # torch shifts int64 arithmetically; the masks make the shifts logical, as the generator is defined.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def key(*words: int | str) -> int:
    """One 64-bit key of a sequence of integers and names; different sequences give unrelated keys."""
    text = "\x1f".join(f"{type(w).__name__}:{w}" for w in words)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch of samples: a row a sample, a lane a number, a purpose a stream of its own.

    base: int64 [B], the hash of (seed, epoch, sample id). epoch, seed, ids: what it was made of.
    """

    base: torch.Tensor
    purpose: int = 0
    epoch: int = 0
    seed: int = 0
    ids: torch.Tensor | None = None

    def for_(self, purpose: int) -> Draw:
        """The same samples with the stream of another purpose, a key as `key` makes it."""
        return Draw(self.base, purpose, self.epoch, self.seed, self.ids)

    def to(self, device: torch.device) -> Draw:
        """The same numbers, to be drawn on another device."""
        ids = None if self.ids is None else self.ids.to(device, non_blocking=True)
        return replace(self, base=self.base.to(device, non_blocking=True), ids=ids)

    def lasting(self) -> Draw:
        """The same samples and purpose with numbers that do not change from epoch to epoch; only of draws made by `draws`."""
        assert self.ids is not None
        return replace(self, base=_base(self.seed, "every epoch", self.ids))

    def bits(self, lanes: int) -> torch.Tensor:
        """Random 64-bit integers, int64 [B, lanes]."""
        import torch

        if lanes > _FEW:  # noise, a lane a pixel: the same keys, made on the device
            counters = torch.arange(lanes, device=self.base.device) * _signed(_GOLDEN) + _signed(self.purpose)
            return _mix_tensor(self.base[:, None] + _mix_tensor(counters))
        keys = [_signed(_mix(self.purpose + lane * _GOLDEN)) for lane in range(lanes)]
        # torch.tensor(keys, device=...) would wait for all that the device has still to do.
        return _mix_tensor(self.base[:, None] + torch.tensor(keys).to(self.base.device, non_blocking=True))

    def uniform(self, lanes: int) -> torch.Tensor:
        """Uniform numbers in [0, 1) in steps of 2^-24, float32 [B, lanes]."""
        return ((self.bits(lanes) >> 40) & 0xFFFFFF).float() * 2.0**-24

    def normal(self, lanes: int) -> torch.Tensor:
        """Normal numbers of mean 0 and variance 1, float32 [B, lanes]: the quantiles of uniform numbers in steps of 2^-32."""
        import torch

        # In float64 and then rounded, because the last bits of a transcendental function are no device's promise.
        middles = (((self.bits(lanes) >> 32) & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
        return torch.special.ndtri(middles).float()

    def integers(self, lanes: int, count: int) -> torch.Tensor:
        """Uniform integers in 0 .. count - 1, int64 [B, lanes]; `count` below 2^31."""
        return (((self.bits(lanes) >> 32) & 0xFFFFFFFF) * count) >> 32


def draws(seed: int, epoch: int, ids: torch.Tensor, visits: torch.Tensor | None = None) -> Draw:
    """The draws of the samples `ids` (int64 [B], below 2^40) in one epoch; of each at its visit, where `visits` numbers them from 0."""
    counter = ids if visits is None else ids + (visits << 40)
    return Draw(_base(seed, epoch, counter), epoch=epoch, seed=seed, ids=ids)


def _base(seed: int, epoch: int | str, counter: torch.Tensor) -> torch.Tensor:
    return _mix_tensor(counter * _signed(_GOLDEN) + _signed(key(seed, "sample", epoch)))


def places(seed: int, epoch: int, count: int) -> Draw:
    """The draws of an epoch's places, first to last, whatever sample comes to stand there: for drawing samples with replacement."""
    import torch

    return Draw(_mix_tensor(torch.arange(count) * _signed(_GOLDEN) + _signed(key(seed, "place", epoch))))


def order(seed: int, epoch: int, count: int, stream: str = "order") -> torch.Tensor:
    """The order of an epoch: a permutation of 0 .. count - 1, int64 on the CPU; each stream has an order of its own.

    Sorting by a bijective hash has no ties, so the order is the same with any sorting algorithm.
    """
    import torch

    ids = torch.arange(count)
    return torch.argsort(_mix_tensor(_mix_tensor(ids * _signed(_GOLDEN) + _signed(key(seed, stream, epoch)))))


def visits(ids: torch.Tensor) -> torch.Tensor | None:
    """How often each id of an epoch came before in it, int64 [n]; None where each comes once."""
    import torch

    if not len(ids) or ids.bincount().numpy().max() == 1:
        return None
    placed = torch.argsort(ids, stable=True)
    together = ids[placed]
    return torch.empty_like(ids).scatter_(0, placed, torch.arange(len(ids)) - torch.searchsorted(together, together))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of what the model itself draws in one step (dropout and the like); non-negative, below 2^63."""
    return _mix(key(seed, "step", rank) + step * _GOLDEN) >> 1
