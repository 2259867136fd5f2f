"""A data set of many classes as a question of two: is it this class, or any other?"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from trainrun.errors import UserError
from trainrun.parts.datasets.splits import Data, Split
from trainrun.recipe.classes import label_of

REST = "rest"


def one_against_rest(data: Data, name: str) -> Data:
    """The data with all its pictures and two classes: `rest`, of label 0, and the class `name`, of label 1, the positive one.

    Raises UserError where there is no such class, where it is called rest itself, or where it is the only one.
    """
    label = label_of("data.one_against_rest", name, data.classes)
    if len(data.classes) < 2:
        raise UserError("data.one_against_rest: there is one class only; remove data.one_against_rest")
    if name == REST:
        raise UserError(f"data.one_against_rest: the class is called {REST}, as are all the others together; give it another name")

    def asked(split: Split | None) -> Split | None:
        if split is None:
            return None
        labels = (split.labels == label).astype(split.labels.dtype)
        digest = hashlib.sha256(f"{split.digest} {label} against the rest".encode()).hexdigest()
        return replace(split, labels=labels, digest=digest)

    train = asked(data.train)
    assert train is not None
    return replace(data, train=train, validation=asked(data.validation), test=asked(data.test), classes=(REST, name))
