"""A training set made imbalanced on purpose: classes thinned out exponentially, to try what is said to help against it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainrun.draw import order
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Split

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class _Members:
    """Reads, or names, the samples of a split that were kept."""

    members: np.ndarray
    of: Callable[[Sequence[int]], np.ndarray]
    named: Callable[[int], str]
    decoded: Callable[[int, int], np.ndarray] | None = None

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        return self.of(self.members[list(ids)].tolist())

    def decode(self, sample: int, shrink: int) -> np.ndarray:
        """The sample as the split decodes it."""
        assert self.decoded is not None
        return self.decoded(int(self.members[sample]), shrink)

    def source(self, sample: int) -> str:
        """What the split calls the sample."""
        return self.named(int(self.members[sample]))


def imbalanced(split: Split, ratio: float, seed: int) -> Split:
    """The split with class i of C thinned out to floor(m ratio^(-i / (C - 1))) pictures, m being the size of the smallest class.

    So the first class has `ratio` times as many as the last, in label order; of each class those stay that come first in a shuffle by
    `seed`. Raises UserError where the last class would have none, and where there are no two classes to differ.
    Source: Cui et al. 2019, Class-Balanced Loss; Cao et al. 2019, LDAM, for CIFAR-10 at 100: 5000, 2997, ... 50, together 12,406.
    """
    import numpy as np

    labels = split.labels
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError("data.imbalance: there is one class only; remove data.imbalance")
    most = int(counts.min())
    # A quotient that is whole in exact arithmetic must not lose a picture to rounding.
    wanted = [math.floor(most * ratio ** (-i / (len(classes) - 1)) + 1e-9) for i in range(len(classes))]
    if wanted[-1] < 1:
        raise UserError(f"data.imbalance: {ratio:g} leaves the last class no picture, the smallest class having {most}; at most {most} is possible")
    shuffled = order(seed, 0, len(labels), "imbalance").numpy()
    members = np.sort(np.concatenate([shuffled[labels[shuffled] == c][:n] for c, n in zip(classes, wanted, strict=True)]))
    read = _Members(members, split.read, split.source, split.decode)
    digest = hashlib.sha256(split.digest.encode() + members.tobytes()).hexdigest()
    held, sizes = (None if rows is None else rows[members] for rows in (split.held, split.sizes))
    decode = read.decode if split.decode else None
    return replace(split, labels=labels[members], read=read, digest=digest, source=read.source, held=held, sizes=sizes, decode=decode)
