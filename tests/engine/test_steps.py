"""How augmentations of a recipe are carried out together, and the network that is built for what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feeds import CPU
from PIL import Image
from small import equal, launched, made, trained, weights

from trainrun.draw import Draw, draws, key
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.feed import Batch, Streamed
from trainrun.engine.fit import fit
from trainrun.engine.inputs import Inputs, make_inputs
from trainrun.engine.resident import Resident
from trainrun.engine.signals import Signals
from trainrun.engine.steps import Geometric, network_shape
from trainrun.engine.use import evaluate_run, predict
from trainrun.errors import UserError
from trainrun.parts.augmentations import Statistics
from trainrun.parts.augmentations.geometry import Move
from trainrun.recipe.registry import Part, PartNode, Registry, registry

COUNT = 20


def node(name: str, **options: Any) -> PartNode:
    """A part with its defaults."""
    part = registry.get("augment", name)
    assert part is not None
    return PartNode("augment", name, part.options(**options).model_dump())


NORMALIZE = node("normalize", mean=[0.5], std=[0.25])
LISTS: dict[str, list[PartNode]] = {
    "moves": [node("random_crop", padding=2), node("horizontal_flip"), NORMALIZE],
    "reflected": [node("shift", mode="reflect"), node("vertical_flip"), node("alternating_flip"), NORMALIZE],
    "warps": [node("random_crop"), node("rotation"), node("horizontal_flip"), node("perspective"), NORMALIZE],
    "two borders": [node("random_crop", mode="edge"), node("rotation", mode="reflect"), NORMALIZE],
    "crop": [node("random_resized_crop", size=9), node("horizontal_flip"), NORMALIZE],
    "jitter": [node("center_crop", size=11), node("scale_jitter", size=8, shorter=[9, 14]), node("affine", degrees=5.0), NORMALIZE],
}


def inputs(nodes: list[PartNode]) -> Inputs:
    return make_inputs(nodes, 3, "channels_last", Statistics(3, lambda: ((0.5,) * 3, (0.25,) * 3)), registry)


def batch() -> Batch:
    pixels = torch.randint(0, 256, (COUNT, 13, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(pixels.permute(0, 3, 1, 2), torch.zeros(COUNT, dtype=torch.int64), torch.arange(COUNT) * 7 + 1, 4, COUNT)


def test_neighbours_are_one_step() -> None:
    assert {name: [type(step).__name__ for step in inputs(nodes).training] for name, nodes in LISTS.items()} == {
        "moves": ["Geometric", "Photometric"],
        "reflected": ["Geometric", "Photometric"],
        "warps": ["Geometric", "Photometric"],
        "two borders": ["Geometric", "Geometric", "Photometric"],
        "crop": ["Geometric", "Photometric"],
        "jitter": ["Geometric", "Photometric"],
    }
    apart = inputs([node("rotation"), NORMALIZE, node("rotation")]).training
    assert [type(step).__name__ for step in apart] == ["Geometric", "Photometric", "Geometric"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LISTS)
def test_a_batch_may_be_split_in_any_way(name: str, training: bool) -> None:
    whole, made = batch(), inputs(LISTS[name])
    expected, _ = made(whole, training)
    for size in (1, 3, 8):
        assert torch.equal(torch.cat([made(micro, training)[0] for micro in whole.split(size)]), expected)
    height, width, channels = network_shape(LISTS[name], (13, 12, 3), registry)
    assert expected.shape == (COUNT, channels, height, width) and expected.is_contiguous(memory_format=torch.channels_last)
    nobody = Batch(whole.images[:0], whole.labels[:0], whole.ids[:0], 4, COUNT)
    assert made(nobody, training)[0].shape == (0, channels, height, width)


def test_what_lies_beyond_is_black_before_normalize_and_the_mean_after_it() -> None:
    """As `trainrun list` says of mode: zero. White pictures are 2 behind normalize, and the border is the only other value."""
    crop, white = node("random_crop", padding=5), replace(batch(), images=torch.full_like(batch().images, 255))
    seen = [inputs(nodes)(white, training=True)[0].unique().tolist() for nodes in ([crop, NORMALIZE], [NORMALIZE, crop])]
    assert seen == [[-2.0, 2.0], [0.0, 2.0]]
    assert "black (after normalize: the mean)" in registry.get("augment", "random_crop").options.model_fields["mode"].description  # type: ignore[union-attr, operator]  # it is registered


def test_each_part_draws_by_its_place_and_the_epoch() -> None:
    made, ids = inputs([node("shift", x=0.5, y=0.0), node("shift", x=0.5, y=0.0)]), torch.arange(50)
    step = made.training[0]
    assert isinstance(step, Geometric)
    motion = step.motion((10, 20), draws(3, 4, ids))
    both = [draws(3, 4, ids).for_(key("augment", place, "shift")).integers(2, 21)[:, 1] - 10 for place in (0, 1)]
    assert isinstance(motion, Move) and torch.equal(torch.as_tensor(motion.x), both[0] + both[1]) and motion.margin == 20
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(torch.as_tensor(motion.x), torch.as_tensor(step.motion((10, 20), draws(3, 5, ids)).x))  # type: ignore[union-attr]  # a move as before


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ([node("random_crop"), node("rotation")], (13, 12)),
        ([node("center_crop", size=10), node("random_crop")], (10, 10)),
        ([node("random_resized_crop", size=24)], (24, 24)),
        ([node("scale_jitter", size=7, shorter=[8, 9]), node("center_crop", size=5), NORMALIZE], (5, 5)),
    ],
)
def test_the_network_sees_what_comes_out(nodes: list[PartNode], size: tuple[int, int]) -> None:
    assert network_shape(nodes, (13, 12, 3), registry) == (*size, 3)


def test_a_size_for_training_only_is_refused() -> None:
    def own_crop(shape: tuple[int, int], draw: Draw) -> Move:
        return Move((5, 5))

    own = Registry()
    own.add(Part("augment", "own_crop", own_crop, facts={"geometry": True}))
    with pytest.raises(UserError, match=r"5 x 5 pixels in training and of 13 x 12 in evaluation"):
        network_shape([PartNode("augment", "own_crop", {})], (13, 12, 3), own)


def test_streamed_pictures_are_augmented_as_resident_ones(tmp_path: Path) -> None:
    fields = {"augment": [{"name": "random_resized_crop", "size": 5}, {"name": "rotation", "mode": "edge"}, "horizontal_flip"]}
    resident, _ = trained(tmp_path, **fields)
    run, _ = made(tmp_path, **fields)
    run.training = Streamed(run.data.train, CPU, 0, 10.0)
    fit(run)
    assert isinstance(resident.training, Resident) and equal(weights(run.model), weights(resident.model))
    split, _ = trained(tmp_path, micro_batch=3, **fields)
    assert not equal(weights(run.model), weights(made(tmp_path, **fields)[0].model))
    assert all(
        torch.allclose(a, b, atol=2e-6, rtol=0) for a, b in zip(weights(split.model).values(), weights(run.model).values(), strict=True)
    )


def test_a_run_with_another_size_is_trained_evaluated_and_asked(tmp_path: Path) -> None:
    """In training, in the evaluation of the run and after it, and for a single picture the network sees the same size."""
    data = tmp_path / "data"
    for n, colour in enumerate(((200, 30, 30), (30, 30, 200))):
        for side in ("train", "val"):
            (data / side / str(n)).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (16, 16), tuple(min(255, c + 9 * i) for c in colour)).save(data / side / str(n) / f"{i}.png")
    fields: dict[str, Any] = {
        "data": {"name": "folder", "root": str(data)},
        "augment": [{"name": "scale_jitter", "size": 10, "shorter": [11, 15]}, "horizontal_flip", "normalize"],
        "batch_size": 4,
        "checkpoint": {"every": "1st"},
    }
    seen = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: (
            seen.append(tuple(given[0].shape[1:])) if isinstance(module, torch.nn.Conv2d) and given[0].shape[1] == 3 else None
        )
    )
    try:
        result = launched(tmp_path, "run", **fields)
        again = evaluate_run(tmp_path / "run")
        likely = predict(tmp_path / "run", [data / "val" / "0" / "1.png"])
    finally:
        handle.remove()
    assert set(seen) == {(3, 10, 10)}
    assert again["val_accuracy"] == result["best"]["val_accuracy"] or again["step"] == result["steps"]
    assert len(likely[0]["classes"]) == 2


def test_small_is_what_the_network_sees(tmp_path: Path) -> None:
    run, _ = made(tmp_path, augment=[{"name": "center_crop", "size": 4}])
    recipe = run.recipe.model_copy(update={"precision": "auto"})
    data = open_data(recipe.data)
    large = recipe.model_copy(update={"augment": [node("random_resized_crop", size=64)]})
    reasons = [settle(r, CPU, data.train.shape)[1]["precision"] for r in (recipe, large)]
    assert reasons[0] != reasons[1] or "no bf16" in reasons[0]
    assert build(settle(large, CPU, data.train.shape)[0], CPU, data, Signals()).inputs.training


@pytest.mark.parametrize("training", [True, False])
def test_a_crop_of_random_size_has_no_dark_rim(training: bool) -> None:
    white = Batch(torch.full_like(batch().images, 255), batch().labels, batch().ids, 0, COUNT)
    for nodes in ([node("random_resized_crop", size=30), node("horizontal_flip")], [node("scale_jitter", size=30, shorter=[30, 40])]):
        assert (inputs(nodes)(white, training)[0] == 1).all()
    assert (inputs([node("center_crop", size=15)])(white, training)[0][:, :, 0] == 0).all()  # larger than the picture: black around it
