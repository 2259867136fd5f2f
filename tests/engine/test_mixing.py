"""Mixing in a run: the same in micro-batches and in several processes, resumed bit for bit, and never in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from children import contents
from small import CPU, equal, launched, made, trained, weights, written

from trainrun.draw import order
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.feed import Batch
from trainrun.engine.fit import train_step
from trainrun.engine.signals import Signals
from trainrun.engine.use import evaluate_run
from trainrun.errors import UserError
from trainrun.parts.augmentations import mixing
from trainrun.world import World

DATA = {"name": "synthetic", "shape": [3, 6, 6], "classes": 4, "size": 96, "validation": 0}
FIELDS: dict[str, Any] = {
    "data": DATA,
    "batch_size": 32,
    "epochs": 4,
    "augment": ["color_jitter", "gaussian_noise", "normalize", {"name": "mixup_or_cutmix", "p": 0.8}],
    "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
}


def test_batch_32_is_8_times_4_where_pictures_are_mixed(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path, **FIELDS)
    split, _ = trained(tmp_path, micro_batch=4, **FIELDS)
    plain, _ = trained(tmp_path, **FIELDS | {"augment": FIELDS["augment"][:-1]})
    for name, tensor in weights(whole.model).items():
        assert torch.allclose(tensor, split.model.state_dict()[name], rtol=0, atol=2e-6)  # as in test_laws.py
    assert not equal(weights(whole.model), weights(plain.model))


def test_inputs_are_the_same_to_the_last_bit_however_a_batch_is_split(tmp_path: Path) -> None:
    """A batch of 32 among three processes: shares of 11, 11 and 10 pictures would part pairs, so they are 12, 10 and 10."""
    run, _ = made(tmp_path, **FIELDS)
    whole = next(run.batches(1))
    images, targets = run.inputs(whole, training=True)
    assert targets.shape == (32, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(32), rtol=0, atol=1e-6)
    assert ((targets > 0).sum(1) == 2).sum() > 8  # a partner is of the same class one time in four
    for size in (1, 2, 3):
        shares = []
        for rank in range(size):
            part = World(torch.device("cpu"), rank, size).share(torch.arange(32), 2)
            assert len(part) in ({32} if size == 1 else {16} if size == 2 else {12, 10})
            for micro in Batch(whole.images[part], whole.labels[part], whole.ids[part], whole.epoch, 32).split(4):
                shares.append(run.inputs(micro, training=True))
        assert torch.equal(torch.cat([s[0] for s in shares]), images)
        assert torch.equal(torch.cat([s[1] for s in shares]), targets)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [2, 9, 10, 11, 13, 32])
def test_shares_keep_pairs(size: int, count: int) -> None:
    ids = torch.arange(count) + 100
    shares = [World(CPU.device, rank, size).share(ids, 2) for rank in range(size)]
    assert torch.equal(torch.cat(shares), ids)
    assert all(len(share) % 2 == 0 for share in shares if not len(share) or share[-1] != ids[-1])
    lengths = [-(-len(share) // 2) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_too_few_pairs_for_the_processes_are_refused(tmp_path: Path) -> None:
    recipe = written(tmp_path, FIELDS | {"batch_size": 31}).recipe  # the last of 96 has three pictures
    data = open_data(recipe.data)
    world = World(torch.device("cpu"), 0, 3)
    with pytest.raises(
        UserError, match="last batch of an epoch has 3 pictures for 3 processes, and pairs that are mixed stay together; choose"
    ):
        build(settle(recipe, world, data.train.shape)[0], world, data, Signals())


def test_partners_change_from_epoch_to_epoch(tmp_path: Path) -> None:
    partners = [{frozenset(pair.tolist()) for pair in order(0, epoch, 96).split(2)} for epoch in range(2)]
    assert len(partners[0] & partners[1]) < 5


def test_mixing_resumes_to_the_last_bit(tmp_path: Path) -> None:
    more = {"data": DATA | {"validation": 0.25}, "checkpoint": {"every": "2st"}}
    fields = FIELDS | more | {"augment": [*FIELDS["augment"][:2], "pca_jitter", "random_erasing", *FIELDS["augment"][2:]]}
    result = launched(tmp_path, "whole", **fields)
    launched(tmp_path, "parted", **fields, stop_at="5st")
    launched(tmp_path, "parted", resume=True, **fields)
    assert contents(tmp_path / "parted") == contents(tmp_path / "whole")
    found = evaluate_run(tmp_path / "whole")  # which builds parts that only a training set can be measured for
    assert found["val_accuracy"] == result["best"]["val_accuracy"]


def test_an_evaluation_mixes_nothing_and_hits_count_for_the_own_label(tmp_path: Path) -> None:
    fields = FIELDS | {"data": DATA | {"validation": 0.25}, "augment": ["normalize", {"name": "mixup", "alpha": 20.0}]}
    run, _ = made(tmp_path, **fields)
    plain, _ = made(tmp_path, **fields | {"augment": ["normalize"]})
    batch = next(run.batches(0))
    images, targets = run.inputs(batch, training=False)
    assert torch.equal(images, plain.inputs(batch, training=True)[0]) and torch.equal(targets, batch.labels)
    assert run.validate() == plain.validate()

    mixed, soft = run.inputs(batch, training=True)
    with torch.no_grad():
        logits = run.model(mixed)
    summed, hits, _ = train_step(run, batch, 0.1).tolist()
    assert hits == (logits.argmax(1) == batch.labels).sum().item()
    q = soft * 0.9 + 0.1 / 4
    assert summed == pytest.approx(-(q * logits.log_softmax(1)).sum().item(), rel=1e-5)
    assert torch.equal(mixing.partners(images), torch.arange(len(images)) ^ 1)
