"""`trainrun schedule`: the learning rate of every step before the run, drawn and as numbers."""

from __future__ import annotations

import itertools
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotille

from trainrun.engine.build import open_data, settle
from trainrun.engine.sampling import make_sampler
from trainrun.engine.state import Plan
from trainrun.errors import UserError
from trainrun.parts.schedules import make_schedule
from trainrun.recipe.load import Loaded
from trainrun.recipe.registry import Registry, registry
from trainrun.recipe.schema import Recipe
from trainrun.report.plots import blank, save
from trainrun.world import World, enter

_MARKS = "123456789abcdefghijklmnopqrstuvwxyz"
_HEIGHT, _LABEL = 16, 9  # rows of a plot, columns of a number beside it


@dataclass(frozen=True)
class Curve:
    """The learning rate of each step that a recipe makes, and what is to be known of it; `title` is the recipe as it was asked for."""

    title: str
    name: str
    rates: Sequence[float]
    steps_per_epoch: int
    notes: Sequence[str]

    def epoch(self, step: int) -> float:
        """Epochs done before a step, as in metrics.jsonl."""
        return round(step / self.steps_per_epoch, 6)

    def document(self) -> dict[str, Any]:
        """The curve as JSON values: `lr` is what the optimizer gets for the step, of which there are `step` before it."""
        steps = [{"step": step, "epoch": self.epoch(step), "lr": lr} for step, lr in enumerate(self.rates)]
        return {"recipe": self.title, "name": self.name, "notes": list(self.notes), "steps": steps}

    def summary(self) -> str:
        """The numbers that a person asks for first."""
        top = max(range(len(self.rates)), key=self.rates.__getitem__)
        count, epochs = len(self.rates), len(self.rates) / self.steps_per_epoch
        length = f"{count:,} steps, {epochs:.4g} epochs of {self.steps_per_epoch:,}"
        highest = f"highest {self.rates[top]:.4g} at step {top:,} (epoch {self.epoch(top):.4g})"
        return f"{self.title}: {length}; lr first {self.rates[0]:.4g}, {highest}, last {self.rates[-1]:.4g}"


@dataclass(frozen=True)
class Curves:
    """The curves of one or several recipes, on one plot."""

    curves: Sequence[Curve]

    def document(self) -> dict[str, Any]:
        """One recipe's curve, or those of several under `recipes`."""
        documents = [curve.document() for curve in self.curves]
        return documents[0] if len(documents) == 1 else {"recipes": documents}

    def lines(self, width: int) -> str:
        """The plot, and below it each recipe's mark and numbers."""
        plain = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
        marks = list(_MARKS[: len(self.curves)]) if len(self.curves) > 1 else ["*" if plain else None]
        told = []
        for curve, mark in zip(self.curves, marks, strict=True):
            told.append((f"{mark}  " if len(self.curves) > 1 else "") + curve.summary())
            told += [f"note: {note}" for note in curve.notes]
        wrapped = (textwrap.fill(line, width, subsequent_indent="   ", break_on_hyphens=False) for line in told)
        return "\n".join([*_plot(self.curves, marks, width), "", *wrapped])

    def png(self, file: Path) -> None:
        """Write the plot as a PNG file; raises UserError where Matplotlib is missing or the file cannot be written."""
        figure = blank(8, 4.5)
        axes = figure.add_subplot(xlabel="epoch", ylabel="learning rate")
        for curve in self.curves:
            axes.plot([curve.epoch(step) for step in range(len(curve.rates))], curve.rates, label=curve.title, drawstyle="steps-post")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if len(self.curves) > 1:
            axes.legend()
        save(figure, file)


def look(recipes: Sequence[tuple[str, Loaded]], parts: Registry = registry) -> Curves:
    """The curves of recipes, each with its title; raises UserError where the data, whose size makes the steps, cannot be opened."""
    if len(recipes) > len(_MARKS):
        raise UserError(f"found {len(recipes)} recipes, and one plot has room for {len(_MARKS)}")
    curves = []
    with enter() as world:
        for title, loaded in recipes:
            with loaded.locating():
                curves.append(curve(title, loaded.recipe, world, parts))
            loaded.check_lengths(curves[-1].steps_per_epoch, parts)
    return Curves(curves)


def curve(title: str, recipe: Recipe, world: World, parts: Registry = registry) -> Curve:
    """The rates that a run of the recipe gives its optimizer, from the step 0 to where it stops."""
    data = open_data(recipe.data, parts)
    recipe, _ = settle(recipe, world, data.train, parts)
    plan = Plan.of(recipe, len(make_sampler(recipe, data, parts)))
    schedule = make_schedule(recipe.schedule, plan.total, plan.steps_per_epoch, parts, recipe.seed)
    notes = list(_notes(recipe, plan, parts))
    return Curve(title, recipe.name, [schedule(step) for step in range(plan.stop)], plan.steps_per_epoch, notes)


def _notes(recipe: Recipe, plan: Plan, parts: Registry) -> Iterator[str]:
    warmup, decay = recipe.schedule.warmup, recipe.schedule.decay
    if warmup.options.get("until_train_error") is not None:
        error = f"the training error never fell below {warmup.until_train_error:g}, which ends the warm-up"
        yield f"schedule.warmup {warmup.name} is drawn as if {error}"
    known = parts.get("decay", decay.name)
    if known and "watches" in known.facts:
        yield f"schedule.decay {decay.name} looks at {known.facts['watches']}, and is drawn as if that gave no reason to reduce the rate"
    if plan.stop < plan.total:
        yield f"stop_at ends the run after {plan.stop:,} steps of the {plan.total:,} that the schedule is made for"


def _plot(curves: Sequence[Curve], marks: Sequence[str | None], width: int) -> Iterator[str]:
    """The rows of a plot of epochs (to the right) and learning rates (upwards), in less than `width` columns."""
    right = max(len(curve.rates) / curve.steps_per_epoch for curve in curves)
    top = max(max(curve.rates) for curve in curves) or 1.0
    room = max(width - _LABEL - 3, 10)
    # A character is 2 x 4 dots, and the highest rate belongs into the last one: the canvas rounds what lies on its edge out of itself.
    columns, rows = 2 * room, 4 * _HEIGHT
    canvas = plotille.Canvas(room, _HEIGHT, xmin=0, ymin=0, xmax=right * columns / (columns - 1), ymax=top * rows / (rows - 1))
    for drawn, mark in zip(curves, marks, strict=True):
        for (x0, y0), (x1, y1) in itertools.pairwise(_points(drawn, 2 * room)):
            if mark is None:
                canvas.line(x0, y0, x1, y1)
                continue
            dots = max(math.ceil(max(abs(x1 - x0) / right * room, abs(y1 - y0) / top * _HEIGHT)), 1)
            for n in range(dots + 1):
                canvas.point(x0 + (x1 - x0) * n / dots, y0 + (y1 - y0) * n / dots, marker=mark)
    labels = {0: f"{top:.4g}", _HEIGHT // 2: f"{top * (1 - (_HEIGHT // 2) / (_HEIGHT - 1)):.4g}", _HEIGHT - 1: "0"}
    for n, row in enumerate(canvas.plot().split("\n")):
        yield f"{labels.get(n, ''):>{_LABEL}} |{row.replace(chr(0x2800), ' ').rstrip()}"
    yield f"{'lr':>{_LABEL}} +{'-' * room}"
    middle, last = f"{right / 2:.4g}", f"{right:.4g} epochs"
    axis = "0".ljust(room // 2 - len(middle) // 2) + middle
    yield " " * (_LABEL + 2) + axis + last.rjust(room - len(axis))


def _points(curve: Curve, columns: int) -> Iterator[tuple[float, float]]:
    """Points of a curve as stairs; of steps that share a column, the lowest and the highest, so that no bend and no peak is lost."""
    stride = max(len(curve.rates) // columns, 1)
    for start in range(0, len(curve.rates), stride):
        steps = range(start, min(start + stride, len(curve.rates)))
        low, high = min(steps, key=curve.rates.__getitem__), max(steps, key=curve.rates.__getitem__)
        for step in sorted({low, high}):
            yield step / curve.steps_per_epoch, curve.rates[step]
            if stride == 1:
                yield (step + 1) / curve.steps_per_epoch, curve.rates[step]
