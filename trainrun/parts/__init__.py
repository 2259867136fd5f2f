"""What a recipe can name. Importing this package registers every built-in part; it never imports torch."""

import importlib

for _module in ("datasets", "models", "initializers", "optimizers", "schedules", "augmentations", "samplers", "losses", "mining"):
    importlib.import_module(f"trainrun.parts.{_module}")
