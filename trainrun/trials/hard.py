"""`trainrun hard RUN`: the training pictures that a run finds hardest, as a list and as a sheet; among them are the wrong labels."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainrun.engine.checkpoint import Damaged
from trainrun.engine.judge import Trained, judge, reopen
from trainrun.engine.rounds import Round, file_of, numbers, read_round
from trainrun.engine.signals import Interrupted, Signals
from trainrun.errors import Stopped, UserError
from trainrun.report.command import command
from trainrun.report.console import clean
from trainrun.report.pictures import Sheet, fitted
from trainrun.world import enter

if TYPE_CHECKING:
    import numpy as np

ORDERS = ("loss", "last-loss", "kept")
_SHARE = 0.05  # of the training pictures, among which wrong labels are counted


@dataclass(frozen=True)
class Hard:
    """The hardest pictures of a run, the hardest first.

    ids, losses, predicted: [top], of those that are shown. flipped: how many of the labels that were made wrong on purpose stand among
    the first of the whole order, where any were. round: the round of mining whose pictures these are, if one was asked for.
    """

    run: Path
    trained: Trained
    by: str
    ids: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray
    flipped: dict[str, Any] | None
    round: Round | None = None

    def document(self) -> dict[str, Any]:
        """The list, with what the run noted of each picture; null is what is not known."""
        found = self.round
        about = None if found is None else {"round": found.number, "step": found.step, "added": len(found.added), "active": len(found.active)}
        return {
            "run": str(self.run),
            "step": self.trained.snapshot.values["step"],
            "by": self.by,
            "round": about,
            "samples": len(self.trained.data.train),
            "hardest": [self._row(n) for n in range(len(self.ids))],
            "flipped": self.flipped,
        }

    def _row(self, n: int) -> dict[str, Any]:
        split, classes, i = self.trained.data.train, self.trained.data.classes, int(self.ids[n])
        kept, last, originals = self.trained.kept, self.trained.last_loss, split.originals
        was = None if originals is None else int(originals[i])
        return {
            "id": i,
            "source": split.source(i),
            "label": classes[int(split.labels[i])],
            "predicted": classes[int(self.predicted[n])],
            "loss": _finite(self.losses[n]),
            "kept": None if kept is None else int(kept[i]),
            "last_loss": None if last is None else _finite(last[i]),
            "score": None if self.round is None or n >= len(self.round.scores) else _finite(self.round.scores[n]),
            "flipped": None if was is None else was != int(split.labels[i]),
            "original": None if was is None else classes[was],
        }

    def lines(self, width: int) -> str:
        """A table, with names and paths cut to fit."""
        noted, form = ("kept", ",") if self.round is None else ("score", ".2f")
        rows = [("", "loss", noted, "label", "predicted", "picture")]
        for n, row in enumerate(self.document()["hardest"], 1):
            flipped = f" (was {row['original']})" if row["flipped"] else ""
            rows.append((f"{n}", _told(row["loss"], ".3f"), _told(row[noted], form), row["label"] + flipped, row["predicted"], row["source"]))
        names = [[clean(cell, keep="") for cell in row[3:5]] for row in rows]
        first, second = (min(max(len(name[column]) for name in names), 24) for column in (0, 1))
        told = []
        if self.round:
            told.append(f"round {self.round.number}, step {self.round.step:,}: {len(self.round.added):,} added, {len(self.round.active):,} active")
        for (number, loss, kept, *_, source), (label, predicted) in zip(rows, names, strict=True):
            line = f"{number:>4}  {loss:>7}  {kept:>5}  {label[:first]:{first}}  {predicted[:second]:{second}}  "
            told.append((line + _end(clean(source, keep=""), max(width - len(line), 12))).rstrip())
        if self.flipped:
            f = self.flipped
            told.append(f"{f['found']:,} of {f['pictures']:,} flipped labels ({f['share']:.1%}) stand among the hardest {f['first']:,} ({_SHARE:.0%})")
        return "\n".join(told)

    @property
    def sheet(self) -> Sheet:
        """The pictures with their labels: whole ones, where the run cut pieces out of pictures that differ in size."""
        split, (_, height, width) = self.trained.data.train, self.trained.snapshot.values["input"]["shape"]
        pictures = [fitted(split.read([sample])[0], height, width) for sample in self.ids.tolist()]
        rows = self.document()["hardest"]
        noted = "loss" if self.round is None else "score"
        captions = [f"{n}. label {row['label']}\nseen {row['predicted']}\n{noted} {_told(row[noted], '.2f')}" for n, row in enumerate(rows, 1)]
        return Sheet(captions, pictures)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _end(text: str, width: int) -> str:
    """The end of a path, which tells more than its beginning."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]


def hardest(
    run: Path,
    overrides: Sequence[str] = (),
    *,
    top: int = 50,
    by: str | None = None,
    round: int | None = None,
    allow_plugins: bool = False,
    checkpoint: str | None = None,
) -> Hard:
    """Order the training pictures of a run: by their loss under its weights, by the last loss that mining saw, or by how often it kept them.

    round: instead, those that a round of mining added (0: the negatives of the start), the highest score first.
    """
    import numpy as np

    if round is not None and by is not None:
        raise UserError(f"--round goes by the scores of that round; leave out --by {by}").then(command("hard", run, "--round", round))
    by = by or "loss"

    if by not in ORDERS:
        raise UserError(f"--by is {', '.join(ORDERS[:-1])} or {ORDERS[-1]}, found {by!r}").then(command("hard", run))
    with Signals() as signals, enter() as world:
        try:
            with signals.at_once():
                trained = reopen(run, overrides, allow_plugins=allow_plugins, checkpoint=checkpoint)
            everyone = np.arange(len(trained.data.train))
            if round is not None:
                of = _round(trained, round, run)
                ids = of.added.numpy()[:top]
                losses, predicted = judge(trained, ids, world, signals)
                return Hard(run, trained, "round", ids, losses, predicted, None, of)
            if by == "loss":
                if trained.kept is not None and len(trained.kept) != len(everyone):  # notes of other pictures
                    trained = replace(trained, kept=None, last_loss=None)
                losses, predicted = judge(trained, everyone, world, signals)
                order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")
                ids = order[:top]
                losses, predicted = losses[ids], predicted[ids]
            else:
                order = _noted(trained, by, run)
                ids = order[:top]
                losses, predicted = judge(trained, ids, world, signals)
        except Interrupted:
            raise Stopped(signals.stop or 2) from None
    return Hard(run, trained, by, ids, losses, predicted, _flipped(trained, order))


def _round(trained: Trained, number: int, run: Path) -> Round:
    """A round of the run, from its file; raises UserError where there is none, where it is damaged, and where the data cannot be that of the run."""
    there = numbers(run)
    if not there:
        what = f"{run} has no rounds of mining, which are those of mining: {{name: rounds}}; leave out --round"
        raise UserError(what).then(command("hard", run))
    if number not in there:
        which = f"rounds {there[0]} to {there[-1]}" if len(there) > 1 else f"round {there[0]} only"
        raise UserError(f"{run} has {which}, found --round {number}").then(command("hard", run, "--round", there[-1]))
    try:
        found = read_round(file_of(run, number))
    except Damaged as error:
        raise UserError(f"{error}; restore it, or leave out --round").then(command("hard", run)) from None
    if int(found.active.max()) >= len(trained.data.train):
        what = f"{run} has rounds of more training pictures than the data, which has {len(trained.data.train):,}"
        raise UserError(what).then(command("hard", run, "--round", number))
    if not trained.same_data:
        print("warning: the files of the training pictures have changed since the run, which its rounds cannot know", file=sys.stderr)
    return found


def _noted(trained: Trained, by: str, run: Path) -> np.ndarray:
    """The pictures that mining has seen, in the order of its notes; raises UserError where there are none of these pictures."""
    import numpy as np

    kept, last, again = trained.kept, trained.last_loss, command("hard", run, "--by", "loss")
    if kept is None or last is None:
        raise UserError(f"{run} was trained without mining, which counts what it keeps; write --by loss").then(again)
    if len(kept) != len(trained.data.train):
        found = f"{run} has notes of {len(kept):,} training pictures, and the data has {len(trained.data.train):,}; write --by loss"
        raise UserError(found).then(again)
    if not trained.same_data:
        print("warning: the files of the training pictures have changed since the run, which its notes cannot know", file=sys.stderr)
    seen = np.flatnonzero(~np.isnan(last))
    if not len(seen):
        raise UserError(f"{run} was stopped before its first step, so mining has noted nothing; write --by loss").then(again)
    by_loss = seen[np.argsort(-last[seen], kind="stable")]
    return by_loss if by == "last-loss" else by_loss[np.argsort(-kept[by_loss], kind="stable")]


def _flipped(trained: Trained, order: np.ndarray) -> dict[str, Any] | None:
    """How many of the labels that `label_noise` made wrong stand among the hardest twentieth of all training pictures."""
    split = trained.data.train
    if split.originals is None:
        return None
    wrong = split.originals != split.labels
    first = max(math.floor(_SHARE * len(split) + 0.5), 1)
    found, pictures = int(wrong[order[:first]].sum()), int(wrong.sum())
    return {"pictures": pictures, "first": first, "found": found, "share": found / pictures}


def show(found: Hard, png: Path | None, pictures: bool) -> dict[str, Any]:
    """Draw the sheet, by default in the run's `report`, and with `pictures` tell a person too; returns the document."""
    file = png or found.run / "report" / "hard.png"
    sheet = found.sheet
    if png is None:
        with contextlib.suppress(OSError):  # where it cannot be made, the sheet cannot be written, which is told
            file.parent.mkdir(exist_ok=True)
    sheet.png(file)
    if pictures:
        sheet.show()
        print(found.lines(min(shutil.get_terminal_size().columns, 160)))
        print(clean(f"wrote {file}", keep=""))
    return {**found.document(), "png": str(file)}
