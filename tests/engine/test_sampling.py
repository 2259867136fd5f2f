"""Samplers in a run: whatever an epoch is made of, the laws hold, and what cannot work is refused with what would."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CPU, SMALL, equal, launched, made, trained, weights, written

from trainrun.draw import order
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.sampling import Sampler, advice
from trainrun.engine.signals import Signals
from trainrun.engine.use import evaluate_run, predict
from trainrun.errors import RecipeError, UserError
from trainrun.recipe.batches import pieces, without_single
from trainrun.recipe.registry import registry
from trainrun.world import World

DATA = {"name": "synthetic", "shape": [1, 6, 6], "classes": 4, "size": 58, "validation": 0.17, "imbalance": 6}
AUGMENT = [{"name": "random_crop", "padding": 1}, "horizontal_flip"]
SAMPLED: dict[str, Any] = {"data": DATA, "sampler": "label_shuffle", "augment": AUGMENT, "epochs": 3}
KINDS = ["shuffle", "sequential", "label_shuffle", {"name": "weighted", "power": 0.5}, "class_balanced", {"name": "subset", "fraction": 0.7}]


def close(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    """Equal but for the order of sums in float32, as in test_laws."""
    pairs = zip(weights(ours).values(), weights(theirs).values(), strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=2e-6) for a, b in pairs)


@pytest.mark.parametrize("sampler", KINDS, ids=str)
def test_batches_are_those_of_the_sampler_from_any_step_on(tmp_path: Path, sampler: Any) -> None:
    run, _ = made(tmp_path, **SAMPLED | {"sampler": sampler})
    epochs = [run.sampler(epoch) for epoch in range(3)]
    expected = [ids for epoch in epochs for ids in epoch.split(10)]
    assert (run.plan.samples, run.plan.steps_per_epoch, run.plan.total) == (len(epochs[0]), len(expected) // 3, len(expected))
    labels = torch.from_numpy(run.data.train.labels)
    for start in (0, 1, run.plan.steps_per_epoch, run.plan.steps_per_epoch + 2):
        batches = list(itertools.islice(run.batches(start), len(expected) - start))
        for ids, batch in zip(expected[start:], batches, strict=True):
            assert torch.equal(batch.ids, ids) and torch.equal(batch.labels, labels[ids])
    assert run.plan.pictures(1, len(expected)) == sum(map(len, expected[1:]))


def test_the_default_is_the_order_of_the_draw(tmp_path: Path) -> None:
    run, _ = made(tmp_path)
    for epoch in range(2):
        assert torch.equal(run.sampler(epoch), order(0, epoch, 40))
    assert next(run.batches(0)).visits is None


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = launched(tmp_path, "whole", **SAMPLED)
    launched(tmp_path, "halves", **SAMPLED, stop_at="7st")
    halves = launched(tmp_path, "halves", resume=True, **SAMPLED)
    assert whole["steps"] == halves["steps"] == 15  # 12 pictures of each of 4 classes an epoch
    one, other = (Path(result["run"]) / "checkpoints" / "last" / "model.safetensors" for result in (whole, halves))
    assert one.read_bytes() == other.read_bytes()


def test_micro_batches_and_feeds_make_no_difference(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path, **SAMPLED)
    split, _ = trained(tmp_path, micro_batch=3, **SAMPLED)
    assert close(split.model, whole.model)
    for workers in (0, 2):
        streamed, _ = trained(tmp_path, **SAMPLED | {"data": {**DATA, "resident": "no", "workers": workers}})
        streamed.close()
        assert not streamed.training.resident
        assert equal(weights(streamed.model), weights(whole.model))
    assert not close(trained(tmp_path, **SAMPLED | {"sampler": "shuffle"})[0].model, whole.model)


def test_a_picture_that_comes_again_is_augmented_anew_and_the_same_in_any_process(tmp_path: Path) -> None:
    data = {"name": "photos10", "size": 40, "validation_size": 0, "crop": 16, "imbalance": 4}
    fields = {"data": data, "sampler": "label_shuffle", "augment": [{"name": "random_crop", "padding": 4}], "batch_size": 16}
    run, _ = made(tmp_path, **fields)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for batch in itertools.islice(run.batches(0), run.plan.steps_per_epoch):
        assert batch.visits is not None
        for sample, visit, picture in zip(batch.ids.tolist(), batch.visits.tolist(), run.inputs(batch, training=True)[0], strict=True):
            seen[sample, visit] = picture
    assert len(seen) == run.plan.samples == 40
    rarest = [seen[sample, visit] for sample, visit in seen if run.data.train.labels[sample] == 9]
    assert len(rarest) == 4  # of a single picture, cropped at 4 of 81 places
    assert len({picture.numpy().tobytes() for picture in rarest}) > 1
    for rank in range(3):
        member, _ = made(tmp_path, **fields)
        member.world = World(torch.device("cpu"), rank, 3)
        for batch in itertools.islice(member.batches(0), run.plan.steps_per_epoch):
            for micro in batch.split(2):
                assert micro.visits is not None
                pictures = run.inputs(micro, training=True)[0]
                for sample, visit, picture in zip(micro.ids.tolist(), micro.visits.tolist(), pictures, strict=True):
                    assert torch.equal(picture, seen.pop((sample, visit)))
    assert not seen


def test_full_is_the_whole_epoch_in_one_step(tmp_path: Path) -> None:
    full, _ = trained(tmp_path, batch_size="full", epochs=4)
    assert (full.plan.batch_size, full.state.step) == (40, 4)
    assert equal(weights(full.model), weights(trained(tmp_path, batch_size=40, epochs=4)[0].model))
    assert close(full.model, trained(tmp_path, batch_size="full", micro_batch=7, epochs=4)[0].model)
    assert trained(tmp_path, batch_size="full", **SAMPLED)[0].plan.batch_size == 48


def test_a_full_run_is_evaluated_as_it_was_and_predicts(tmp_path: Path) -> None:
    from PIL import Image

    result = launched(tmp_path, "run", **SAMPLED, batch_size="full", micro_batch=5)
    found = evaluate_run(Path(result["run"]), checkpoint="best")
    assert found["val_loss"] == result["best"]["val_loss"]
    recalls = [of["accuracy"] * of["samples"] for of in found["classes"].values()]
    assert sum(recalls) == pytest.approx(found["val_accuracy"] * found["samples"], abs=1e-9)
    Image.new("L", (6, 6)).save(tmp_path / "a.png")
    assert len(predict(Path(result["run"]), [tmp_path / "a.png"])[0]["classes"]) == 4


def test_one_picture_a_step_is_a_run(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, batch_size=1, epochs=1)
    assert run.state.step == 40


def by_splitting(samples: int, batch: int, micro: int | None, processes: int) -> set[int]:
    """The sizes of what passes through the network, by the very calls that a run makes."""
    worlds = [World(torch.device("cpu"), rank, processes) for rank in range(processes)]
    shares = [world.share(ids) for ids in torch.arange(samples).split(batch) for world in worlds]
    return {len(piece) for share in shares for piece in (share.split(micro) if micro and len(share) else [share])}


def test_pieces_are_what_a_run_makes_of_an_epoch() -> None:
    for samples, batch, micro, processes in itertools.product((1, 2, 7, 12, 33), (1, 2, 3, 8, 32, 40), (None, 1, 2, 5), (1, 2, 3)):
        assert pieces(samples, batch, micro, processes) == by_splitting(samples, batch, micro, processes)


def test_what_is_proposed_works_and_is_nearest() -> None:
    assert without_single(33, 32) == {"batch_size": 31}
    assert without_single(33, 8) == {"batch_size": 7}
    assert without_single(40, 10, 3) == {"micro_batch": 2}
    assert without_single(20, 4, None, 4) == {"batch_size": 10}  # 8 leaves 4 for 4
    assert without_single(1, 8) == {}
    for samples, batch, micro, processes in itertools.product((5, 12, 33, 65), (1, 2, 8, 32), (None, 2, 3), (1, 2)):
        if found := without_single(samples, batch, micro, processes):
            fixed = (samples, found.get("batch_size", batch), found.get("micro_batch", micro), processes)
            assert min(by_splitting(*fixed)) > 1


BATCH_NORM = {"name": "tiny_convnet", "width": 4, "depth": 2}


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({"micro_batch": 3}, 1, r"40 pictures an epoch, batch_size 10, in micro-batches of 3\); write micro_batch=2,"),
        ({"micro_batch": 1}, 1, r"write micro_batch=2,"),
        ({"batch_size": 4, "data": SMALL["data"] | {"resident": "yes"}}, 4, r"batch_size 4, shared by 4 processes\); write batch_size=8,"),
        ({"sampler": "label_shuffle", "data": DATA, "batch_size": 47}, 1, r"48 pictures an epoch, batch_size 47\); write batch_size=46,"),
    ],
)
def test_a_single_picture_under_batch_norm_is_refused(tmp_path: Path, fields: dict[str, Any], size: int, words: str) -> None:
    world = World(torch.device("cpu"), 0, size)
    with pytest.raises(UserError, match=f"batch norm would see a single picture .*{words} or a model without batch norm"):
        made(tmp_path, world, model=BATCH_NORM, **fields)
    if size == 1:
        made(tmp_path, world, **fields)  # without batch norm
        name, value = words.split("write ")[1].rstrip(",").split("=")
        trained(tmp_path, model=BATCH_NORM, **fields | {name: int(value)})


def test_a_batch_size_of_one_is_allowed_with_a_word_and_refused_where_torch_cannot(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, model=BATCH_NORM, batch_size=1, epochs=1)
    (told,) = advice(run.model, run.recipe, run.plan, CPU)
    assert "statistics from one picture in every pass" in told and told.endswith("better is model.norm=group")
    with pytest.raises(UserError, match="single picture"):  # a map of one pixel
        made(tmp_path, model=BATCH_NORM, batch_size=1, data={**DATA, "shape": [1, 2, 2]})
    (told,) = advice(run.model, written(tmp_path, {"batch_size": "full"}).recipe, run.plan, World(torch.device("cpu"), 0, 1))[:1]
    assert "write micro_batch=256" in told


def test_what_does_not_suit_the_data_is_told_at_its_place_before_there_is_a_run(tmp_path: Path) -> None:
    for sampler, path, words in (
        ({"name": "subset", "count": 41}, "sampler.count", "41 is more than the "),
        ({"name": "weighted", "weights": {"dog": 2.0}}, "sampler.weights", "the data has no class 'dog'"),
    ):
        with pytest.raises(RecipeError) as caught:
            launched(tmp_path, "run", sampler=sampler, data={**DATA, "imbalance": 2.0})
        (mistake,) = caught.value.mistakes
        assert mistake.path == path and words in mistake.message and mistake.line
        assert not (tmp_path / "run").exists()


def test_a_sampler_that_changes_its_length_is_refused() -> None:
    labels = torch.zeros(9, dtype=torch.int64)
    sampler = Sampler("mine", lambda labels, classes, seed, epoch: torch.arange(9 - epoch), 0, labels, ("a",))
    assert len(sampler) == len(sampler(0)) == 9
    with pytest.raises(UserError, match="sampler mine gives 8 pictures in epoch 1 and 9 in epoch 0"):
        sampler(1)
    with pytest.raises(UserError, match="gives no picture"):
        Sampler("none", lambda labels, classes, seed, epoch: torch.arange(0), 0, labels, ("a",))


def test_the_data_set_decides_which_names_have_weights(tmp_path: Path) -> None:
    recipe = written(tmp_path, {"sampler": {"name": "weighted", "weights": {"class 1": 3, "class 9": 2}}}).recipe
    data = open_data(recipe.data)
    with pytest.raises(UserError, match="no class 'class 9'"):
        build(settle(recipe, CPU)[0], CPU, data, Signals())


@pytest.mark.parametrize(
    "data", [{"name": "digits"}, {"name": "synthetic", "size": 33, "validation": 0.29}, {"name": "photos10", "size": 77, "validation_size": 0}], ids=str
)
def test_what_data_says_of_its_length_is_so(tmp_path: Path, data: dict[str, Any]) -> None:
    node = written(tmp_path, {"data": data}).recipe.data
    part = registry.get("data", node.name)
    assert part and part.facts["pictures"](node.options) == len(open_data(node).train)


@pytest.mark.parametrize("model", [BATCH_NORM, {**BATCH_NORM, "norm": "none"}, {**BATCH_NORM, "norm": "group"}, "resnet_cifar", {"name": "wide_resnet", "depth": 10, "width": 1}], ids=str)  # fmt: skip
def test_what_a_model_says_of_its_norms_is_so(tmp_path: Path, model: Any) -> None:
    run, _ = made(tmp_path, model=model)
    part = registry.get("model", run.recipe.model.name)
    assert part and part.facts["batch_norm"](run.recipe.model.options) == any(isinstance(m, torch.nn.BatchNorm2d) for m in run.model.modules())
