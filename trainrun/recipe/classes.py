"""Classes by the names that a recipe gives them."""

from __future__ import annotations

from collections.abc import Sequence

from trainrun.errors import UserError
from trainrun.recipe.registry import nearest


def label_of(field: str, name: str, classes: Sequence[str]) -> int:
    """The label of the class that a field of the recipe names; raises UserError, beginning with the field, where the data has none such."""
    if name not in classes:
        near = nearest(name, classes)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
        raise UserError(f"{field}: the data has no class {name!r}; {hint}")
    return list(classes).index(name)
