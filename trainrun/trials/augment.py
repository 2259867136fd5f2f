"""`trainrun show RECIPE --augment`: training pictures before and after each augmentation, as a grid, with their boxes where they have some.

The pictures are those of the run: its own feed fetches them and its own inputs change them, with the numbers that the run
draws for that sample in that epoch, whether or not a sampler takes it there. The recipe is made small only in what comes
after the pictures.
"""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.engine.build import build, open_data, settle
from trainrun.engine.detection import BoxedInputs, target_of
from trainrun.engine.feed import Batch
from trainrun.engine.inputs import Inputs, make_inputs
from trainrun.engine.run import Run
from trainrun.engine.signals import Signals
from trainrun.parts.datasets.splits import Data
from trainrun.recipe.dump import plain
from trainrun.recipe.registry import Part, PartNode, Registry, registry
from trainrun.recipe.schema import Recipe
from trainrun.report.boxes import boxed
from trainrun.report.console import clean
from trainrun.report.pictures import Grid, fitted
from trainrun.world import World, enter

if TYPE_CHECKING:
    import numpy as np
    import torch

_SAMPLES = 4  # pictures, each in more than one epoch
_NOTHING = PartNode("augment", "-", {})


@dataclass(frozen=True)
class Row:
    """A training picture in an epoch; `label` is its class, or None where it has `boxes`, whose number that is."""

    sample: int
    source: str
    label: str | None
    epoch: int
    boxes: int | None = None

    @property
    def title(self) -> str:
        """What stands beside the picture."""
        return f"{self.label if self.boxes is None else f'{self.boxes} box' + 'es' * (self.boxes != 1)}\nsample {self.sample}\nepoch {self.epoch}"


@dataclass(frozen=True)
class Augmented:
    """What the augmentations of a recipe do to some training pictures; `fed` is what the network is given, float32 [C, H, W] a picture."""

    recipe: Recipe
    rows: list[Row]
    columns: dict[str, list[np.ndarray]]
    scaling: list[str]
    fed: list[torch.Tensor]

    def document(self) -> dict[str, Any]:
        """Columns and rows; sizes are height and width in pixels, the largest of each where pictures have boxes and are of any size."""
        return {
            "name": self.recipe.name,
            "seed": self.recipe.seed,
            "augment": plain(self.recipe.augment),
            "columns": [{"title": title, "size": list(_size(pictures))} for title, pictures in self.columns.items()],
            "rows": [
                {"sample": r.sample, "source": r.source, **({"class": r.label} if r.boxes is None else {"boxes": r.boxes}), "epoch": r.epoch}
                for r in self.rows
            ],
        }

    def lines(self, width: int) -> str:
        """What the columns are."""
        shown = f"{len({r.sample for r in self.rows})} training pictures with seed {self.recipe.seed}, as in " + _epochs(self.rows)
        columns = "columns: " + ", ".join(f"{title} ({'x'.join(map(str, _size(pictures)))})" for title, pictures in self.columns.items())
        undone = [f"{', '.join(self.scaling)}: scales values only, and is undone in the pictures"] if self.scaling else []
        return "\n".join(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False) for text in [shown, columns, *undone])

    @property
    def grid(self) -> Grid:
        """The pictures as they are drawn."""
        return Grid(list(self.columns), [row.title for row in self.rows], list(self.columns.values()))

    def png(self, file: Path) -> None:
        """Write the grid."""
        self.grid.png(file)


def _size(pictures: Sequence[np.ndarray]) -> tuple[int, int]:
    """The largest height and width."""
    return max(picture.shape[0] for picture in pictures), max(picture.shape[1] for picture in pictures)


def _epochs(rows: Sequence[Row]) -> str:
    epochs = sorted({row.epoch for row in rows})
    return f"epoch {epochs[0]}" if len(epochs) == 1 else f"epochs {', '.join(map(str, epochs))}"


def show(recipe: Recipe, file: Path, pictures: bool) -> dict[str, Any]:
    """Look, write the grid to a PNG file, and with `pictures` tell a person too; returns the document."""
    with enter() as world:
        found = look(recipe, world)
    found.png(file)
    if pictures:
        found.grid.show()
        print(clean(found.lines(min(shutil.get_terminal_size().columns, 120))))
        print(clean(f"wrote {file}", keep=""))
    return {**found.document(), "png": str(file)}


def look(recipe: Recipe, world: World, parts: Registry = registry, *, ids: Sequence[int] = (), epochs: int = 2) -> Augmented:
    """The first training pictures of a recipe, or those of some sample ids, through its augmentations: each alone, and all together."""
    data = open_data(recipe.data, parts)
    settled = settle(recipe, world, data.train, parts)[0]
    with closing(build(_small(settled, data, parts), world, replace(data, validation=None), Signals(), parts)) as run:
        taken = _taken(run, parts, ids, epochs)
        cut = run.training.cut
        # What the feed has cut already is shown alone as it comes; the parts behind it are shown on what evaluation cuts out.
        middle = taken.as_in_evaluation(run) if cut else taken
        scaling = [p for p in range(1 if cut else 0, len(recipe.augment)) if _only_scales(run, p, taken, parts)]
        whole = [fitted(data.train.read([sample])[0], *cut.size) for sample, _, _ in taken.rows] if cut else taken.originals(data.classes)
        columns = {"original": whole}
        for place, node in enumerate(recipe.augment):
            if place not in scaling:
                # What scales stays before the parts behind it, which are made for what it gives.
                alone = _only(run, [*(p for p in scaling if p < place), place], parts)
                columns[_title(node.name, columns)] = (taken if place == 0 else middle).shown(alone, data.classes)
        columns[_title("all together", columns)] = taken.shown(run.inputs, data.classes)
        boxes = data.train.boxes
        rows = [
            Row(i, data.train.source(i), data.classes[label], epoch) if boxes is None else Row(i, data.train.source(i), None, epoch, len(boxes[i]))
            for i, label, epoch in taken.rows
        ]
        fed = [picture.cpu() for picture in taken.fed(run.inputs)]
    order = sorted(range(len(rows)), key=lambda n: ([row.sample for row in rows].index(rows[n].sample), rows[n].epoch))
    return Augmented(
        recipe=settled,
        rows=[rows[n] for n in order],  # those of one picture stand together
        columns={title: [pictures[n] for n in order] for title, pictures in columns.items()},
        scaling=[recipe.augment[place].name for place in scaling],
        fed=[fed[n] for n in order],
    )


def _small(recipe: Recipe, data: Data, parts: Registry) -> Recipe:
    """The recipe with as little of a network as there is, because only its pictures are looked at, and reading no more of those than needed."""

    def part(kind: str, name: str, **options: Any) -> PartNode:
        found = parts.get(kind, name)
        assert found is not None
        valid = found.options(**options)
        return PartNode(kind, name, {option: getattr(valid, option) for option in type(valid).model_fields})

    reading: dict[str, Any] = {"resident": "no"} | ({} if data.train.cache else {"workers": 0})
    return recipe.model_copy(
        update={
            "data": replace(recipe.data, options={**recipe.data.options, **reading}),
            "model": part("model", "tiny_convnet", width=1, depth=1, norm="none"),
            "initializer": part("initializer", "default"),
            "optimizer": part("optimizer", "sgd"),
            "schedule": recipe.schedule.model_copy(update={"warmup": part("warmup", "none"), "decay": part("decay", "constant")}),
            "mining": None,
            "early_stopping": None,
            "ema": None,
            "compile": "off",
        }
    )


def _only(run: Run, places: Sequence[int], parts: Registry) -> Inputs:
    """The run's inputs with only some places of its list: the others do nothing, so that each part left draws what it draws in the run."""
    alone = Registry()
    alone.restore(parts.snapshot())
    alone.add(Part(_NOTHING.kind, _NOTHING.name, lambda images, draw: images))
    nodes = [node if place in places else _NOTHING for place, node in enumerate(run.recipe.augment[: max(places) + 1])]
    inputs = make_inputs(nodes, run.recipe.seed, run.recipe.memory_format, run.statistics, alone, cut=run.training.cut is not None)
    return BoxedInputs.of(inputs) if run.training.split.boxes is not None else inputs


@dataclass(frozen=True)
class _Taken:
    """The first `count` training pictures of some micro-batches."""

    batches: list[Batch]
    count: int

    @property
    def images(self) -> list[torch.Tensor]:
        """uint8 [C, H, W], as the feed gives them."""
        return [image for batch in self.batches for image in batch.images][: self.count]

    @property
    def rows(self) -> list[tuple[int, int, int]]:
        """Sample, label and epoch of each."""
        rows = [(int(i), int(label), batch.epoch) for batch in self.batches for i, label in zip(batch.ids, batch.labels, strict=True)]
        return rows[: self.count]

    def as_in_evaluation(self, run: Run) -> _Taken:
        """The same pictures, cut by the feed as they are in evaluation."""
        plain = [next(run.training([batch.ids.cpu()], batch.epoch, [len(batch)])) for batch in self.batches]
        return _Taken([replace(batch, images=other.images) for batch, other in zip(self.batches, plain, strict=True)], self.count)

    def fed(self, inputs: Inputs, training: bool = True) -> list[torch.Tensor]:
        """What the network is given of them: float32 [C, H, W]."""
        return [picture for batch in self.batches for picture in inputs(batch, training)[0]][: self.count]

    def extremes(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """What black and white become: [C, 1, 1] each."""
        import torch

        some = self.batches[0].split(1)[0]
        filled = [[image.clone().fill_(value) for image in some.images] for value in (0, 255)]
        black, white = (inputs(replace(some, images=torch.stack(each) if some.boxes is None else each), False)[0][0] for each in filled)
        return black.mean((1, 2), keepdim=True), white.mean((1, 2), keepdim=True)

    def originals(self, classes: Sequence[str]) -> list[np.ndarray]:
        """As they are read, uint8 [H, W, C], with all of their boxes."""
        return self._drawn(self.images, [target for batch in self.batches for target in map(target_of, batch.boxes or ())], classes)

    def shown(self, inputs: Inputs, classes: Sequence[str]) -> list[np.ndarray]:
        """What the network is given of them, scaled back to uint8 [H, W, C], with the boxes that it learns from."""
        black, white = self.extremes(inputs)
        given = [inputs(batch, True) for batch in self.batches]
        values = [(picture - black) / (white - black) for images, _ in given for picture in images][: self.count]
        levels = [value.nan_to_num(0).mul(255).round().clamp(0, 255).byte() for value in values]
        return self._drawn(levels, [target for _, targets in given for target in targets], classes)

    def _drawn(self, images: Sequence[torch.Tensor], targets: Sequence[Any], classes: Sequence[str]) -> list[np.ndarray]:
        pictures = [image.permute(1, 2, 0).cpu().numpy() for image in images]
        if self.batches[0].boxes is None:
            return pictures
        return [
            boxed(picture, target["boxes"].cpu().numpy(), target["labels"].cpu().numpy() - 1, classes)
            for picture, target in zip(pictures, targets, strict=False)
        ]


def _taken(run: Run, parts: Registry, ids: Sequence[int], epochs: int) -> _Taken:
    """A few pictures in the first epochs: the run's first, or `ids`; of those that a neighbour is mixed into, more of the first batches instead."""
    import torch

    def fetched(some: torch.Tensor, epochs: Iterable[int]) -> list[Batch]:
        return [batch for epoch in epochs for batch in run.training([some], epoch, [len(some)], training=True)]

    within = range(min(epochs, -(-run.plan.total // run.plan.steps_per_epoch)))
    if run.training.split.boxes is not None and not ids:  # each is changed by itself
        few = run.sampler(0)[:_SAMPLES]
        return _Taken(fetched(few, within), len(few) * len(within))
    if ids:
        return _Taken(fetched(torch.tensor(ids), range(epochs)), len(ids) * epochs)
    batches: list[Batch] = []
    count = min(_SAMPLES * epochs, run.plan.samples)
    for batch in run.batches(0):
        batches += batch.split(run.recipe.micro_batch)
        if sum(map(len, batches)) >= count:
            break
    first = batches[0]
    mixes = any(part.facts.get("mixes") for node in run.recipe.augment if (part := parts.get(node.kind, node.name)))
    singles = first.split(1)[:count]
    if mixes or len(singles) < count or not all(map(torch.equal, run.inputs(first, True)[0], _Taken(singles, count).fed(run.inputs))):
        return _Taken(batches, count)
    some = first.split(_SAMPLES)[0]
    return _Taken([some, *fetched(some.ids.cpu(), within[1:])], len(some) * len(within))


def _only_scales(run: Run, place: int, taken: _Taken, parts: Registry) -> bool:
    """Whether a part only maps each channel's 0..255 to another range, always, as `normalize` does: nothing of it could be seen."""
    import torch

    node = run.recipe.augment[place]
    found = parts.get(node.kind, node.name)
    if found is None or not found.facts.get("always", False):
        return False
    inputs = _only(run, [place], parts)
    black, white = taken.extremes(inputs)
    plain, fed = [black + image / 255 * (white - black) for image in taken.images], taken.fed(inputs)
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(plain, fed, strict=True))


def _title(name: str, taken: Collection[str]) -> str:
    """A column's title; the second of a name has a number."""
    return next(title for n in itertools.count(1) if (title := name if n == 1 else f"{name} {n}") not in taken)
