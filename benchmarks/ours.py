"""`trainrun fit` in this process, with a call after each of its steps. Imports nothing that trainrun does not import itself."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from recipe import recipe_file

import trainrun.parts  # noqa: F401 - fills the registry
from trainrun.engine import launch
from trainrun.errors import Stopped
from trainrun.recipe.load import load


def trainrun_fit(data: str, net: str, steps: int, after_step: Callable[[], None], overrides: Sequence[str] = ()) -> None:
    """Train for some steps, quietly but with journal, log and checkpoints, and then stop as Ctrl-C stops a run.

    data: the recipe's data as a YAML flow mapping. net: a key of recipe.NETS.
    """
    made = 0

    class Counting(launch.Teller):
        def progress(self) -> None:
            nonlocal made
            super().progress()
            made += 1
            after_step()
            if made == steps:
                self.run.signals.stop = signal.SIGINT

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(launch, "Teller", Counting):
        try:
            launch.launch(load(recipe_file(Path(folder), data, net), overrides), out=Path(folder) / "run", quiet=True)
        except Stopped:
            return
    raise RuntimeError(f"trainrun ended by itself before step {steps}")
