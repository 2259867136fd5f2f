"""trainrun: image training from YAML recipes, checked before it runs, resumed bit for bit.

What a plugin needs stands here: the decorator `part`, and `Data` and `Split` for data sets of its own.
"""

from __future__ import annotations

from typing import Any

from trainrun.recipe.registry import part

__version__ = "0.1.0"
__all__ = ["Data", "Split", "__version__", "part"]


def __getattr__(name: str) -> Any:
    # Importing the built-in parts registers them all; whoever imports only trainrun.recipe does not pay for that.
    if name in ("Data", "Split"):
        from trainrun.parts.datasets import splits

        return getattr(splits, name)
    raise AttributeError(f"module 'trainrun' has no attribute {name!r}")
