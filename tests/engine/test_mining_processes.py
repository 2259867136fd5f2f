"""Mining over several processes: a global choice is that of one process, one's own is that of each share, and a resumed one is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_processes import RECIPE, agree, figures, finish, weights

GLOBAL = "mining={name: ohem, keep: 0.4, start: 1ep, ramp: 10st}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "run.yaml"
    file.write_text(RECIPE.replace("epochs: 4", "epochs: 3"))
    return file


def ledger(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "ledger.safetensors")


@pytest.mark.parametrize("options", ["", ", passes: 1", ", within: class, by: margin"], ids=["two passes", "one pass", "class"])
def test_a_choice_over_two_processes_is_that_of_one(recipe: Path, tmp_path: Path, options: str) -> None:
    mining = GLOBAL.replace("}", options + "}")
    more = (mining, "micro_batch=null") if "passes" in options else (mining,)
    one, two = (finish(size, recipe, tmp_path / str(size), *more) for size in (1, 2))
    agree(one, two, {"train": 332, "val": 83})
    torch.testing.assert_close(ledger(two)["loss"], ledger(one)["loss"], rtol=1e-3, atol=1e-4)
    assert torch.equal(ledger(two)["kept"], ledger(one)["kept"])
    assert ledger(one)["kept"].sum() < 3 * 332 * 0.8
    assert {line["mining_kept"] for line in figures(one)} != {1.0}


def test_streamed_pictures_that_come_again_are_shared_out_anew(recipe: Path, tmp_path: Path) -> None:
    """Each process has decoded its own share only, and the kept pictures of both are dealt out."""
    more = (GLOBAL, "sampler=label_shuffle", "data.imbalance=5", "data.resident='no'", "epochs=2")
    one, two = (finish(size, recipe, tmp_path / str(size), *more) for size in (1, 2))
    agree(one, two, {"train": 332, "val": 83})
    assert torch.equal(ledger(two)["kept"], ledger(one)["kept"])


def test_fewer_kept_than_processes_leave_one_without(recipe: Path, tmp_path: Path) -> None:
    """Of a batch of 32 a single picture is kept, so that the other process has an empty micro-batch."""
    more = ("mining={name: ohem, keep: 0.03}", "epochs=1")
    one, two = (finish(size, recipe, tmp_path / str(size), *more) for size in (1, 2))
    agree(one, two, {"train": 332, "val": 83})
    assert ledger(one)["kept"].sum() == 11


@pytest.mark.parametrize("passes", [2, 1])
def test_each_process_chooses_from_its_own_share(recipe: Path, tmp_path: Path, passes: int) -> None:
    """Both keep 8 of their 16 pictures: which ones they are shows in the ledger, against a global choice's."""
    mining = f"mining={{name: ohem, keep: 0.5, passes: {passes}, scope: rank}}"
    more = (mining, "micro_batch=null", "epochs=1", "schedule={lr: 1e-30}", "ema=null", "augment=[normalize]")
    two = finish(2, recipe, tmp_path / "two", *more)
    one = finish(1, recipe, tmp_path / "one", more[0].replace(", scope: rank", ""), *more[1:])
    (kept, losses), single = (ledger(two)[name] for name in ("kept", "loss")), ledger(one)["kept"]
    assert kept.sum() == single.sum() == 166
    assert not torch.equal(kept, single)
    from trainrun.draw import order

    for batch in order(0, 0, 332).split(32):  # the weights do not move, so that the losses are those of the step
        half = -(-len(batch) // 2)
        for share in (batch[:half], batch[half:]):
            hardest = losses[share].topk((len(share) + 1) // 2).indices
            assert kept[share].sum() == len(hardest) == kept[share][hardest].sum()
    assert figures(two)[-1]["mining_kept"] == 0.5


def test_two_processes_that_mine_go_on_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    finish(2, recipe, halves, GLOBAL, "stop_at=15st")
    finish(2, recipe, halves, GLOBAL, "--resume")
    finish(2, recipe, whole, GLOBAL)
    assert all(map(torch.equal, weights(halves).values(), weights(whole).values()))
    assert (halves / "ledger.safetensors").read_bytes() == (whole / "ledger.safetensors").read_bytes()
