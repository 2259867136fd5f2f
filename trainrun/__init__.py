"""trainrun: image training from YAML recipes, checked before it runs, resumed bit for bit.

What a plugin needs stands here: the decorator `part`, and `Data` and `Split` for data sets of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainrun.parts.datasets.splits import Data, Split
    from trainrun.recipe.registry import part

__version__ = "0.1.0"
__all__ = ["Data", "Split", "__version__", "part"]


def __getattr__(name: str) -> Any:
    # Whoever asks for help alone pays for neither pydantic nor the built-in parts, all of which register when one is imported.
    if name == "part":
        from trainrun.recipe import registry

        return registry.part
    if name in ("Data", "Split"):
        from trainrun.parts.datasets import splits

        return getattr(splits, name)
    raise AttributeError(f"module 'trainrun' has no attribute {name!r}")
