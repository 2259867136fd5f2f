"""A training set with some labels made wrong on purpose, to try what is said to find such labels, or to stand them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from trainrun.draw import draws, key, order
from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Split


def mislabelled(split: Split, share: float, seed: int, classes: int) -> Split:
    """The split with floor(share n + 1/2) of its n labels replaced, each by one of the other classes, all of them as likely.

    Those are replaced that come first in a shuffle by `seed`, and by what depends on `seed` and the sample id alone; `originals` holds the
    labels as they were. Raises UserError where there is no other class, or none would be replaced.
    """
    if classes < 2:
        raise UserError("data.label_noise: there is one class only, so that no label can be wrong; remove data.label_noise")
    count = math.floor(share * len(split) + 0.5)
    if not count:
        raise UserError(f"data.label_noise: {share:g} of {len(split):,} training pictures is none; write a larger share")
    chosen = order(seed, 0, len(split), "label noise")[:count]
    away = 1 + draws(seed, 0, chosen).for_(key("label noise")).integers(1, classes - 1)[:, 0]
    labels = split.labels.copy()
    labels[chosen.numpy()] = (labels[chosen.numpy()] + away.numpy()) % classes
    digest = hashlib.sha256(split.digest.encode() + labels.tobytes()).hexdigest()
    return replace(split, labels=labels, digest=digest, originals=split.labels)
