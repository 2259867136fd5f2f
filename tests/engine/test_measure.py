"""What steps measured is summed in float64 in their order, and what is no number is found, with its step and layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from small import CPU
from torch import nn

from trainrun.engine.measure import Record, Sums, culprits

NAMES = ("loss", "accuracy")
FINE = [torch.ones(2, 3), torch.zeros(1)]


def filled(*rows: tuple[float, float, float]) -> Record:
    record = Record(8, CPU, NAMES)
    for row in rows:
        record.write(torch.tensor(row, dtype=torch.float64), 10)
    return record


def test_means_a_picture_over_steps_of_other_sizes() -> None:
    record = Record(2, CPU, NAMES)
    for loss, correct, samples in [(30.0, 3, 10), (4.0, 2, 2)]:
        record.write(torch.tensor([loss, correct, 0.0], dtype=torch.float64), samples)
    assert record.full
    assert record.interval.samples == 0  # nothing is known before it is read
    assert record.read(FINE) is None
    assert not record.full
    assert record.interval.figures("train") == {"train_loss": 34 / 12, "train_accuracy": 5 / 12}
    record.interval.clear()
    record.write(torch.tensor([1.0, 1, 0.0], dtype=torch.float64), 4)
    assert record.read(FINE) is None
    assert record.interval == Sums({"loss": 1.0, "accuracy": 1.0}, 4)
    assert record.period == Sums({"loss": 35.0, "accuracy": 6.0}, 16)
    assert Sums.of(NAMES).figures("train") == {}


def test_sums_go_on_where_they_were_saved() -> None:
    record, again = filled((1.5, 1, 0), (0.1, 0, 0)), Record(8, CPU, NAMES)
    record.read(FINE)
    again.load(record.state())
    assert (again.interval, again.period) == (record.interval, record.period)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([(1, 1, 1)] * 3, None),
        ([(1, 1, 1), (NAN, 0, 1), (1, 1, 1)], ("loss", 1)),
        ([(INF, 1, 1), (NAN, 0, NAN)], ("loss", 1)),
        ([(1, 1, 1), (1, 1, INF)], ("gradient norm", 0)),
        ([(1, 1, NAN), (NAN, 0, NAN)], ("gradient norm", 1)),
        ([(1e300, 1, 1)], None),
    ],
)
def test_the_first_that_is_no_number_is_found(rows: list[tuple[float, float, float]], found: tuple[str, int] | None) -> None:
    assert filled(*rows).read(FINE) == found


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_number_in_the_state_is_found(value: float) -> None:
    bad = torch.ones(5, 5)
    bad[3, 4] = value
    assert filled((1, 1, 1)).read([*FINE, bad]) == ("weights or their moments", 0)
    assert Record(1, CPU, NAMES).read([bad]) is not None


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.Linear(2, 2)).eval()


def spoil(name: str, value: float) -> Callable[[nn.Module], None]:
    def act(model: nn.Module) -> None:
        model.state_dict()[name].fill_(value)

    return act


@pytest.mark.parametrize(
    ("act", "pictures", "layers"),
    [
        (spoil("0.bias", 0.5), torch.ones(3, 2), []),
        (spoil("3.bias", NAN), torch.ones(3, 2), ["3.bias"]),
        (spoil("2.running_var", INF), torch.ones(3, 2), ["2.running_var"]),
        (spoil("3.weight", 1e20), torch.ones(3, 2), ["3.weight"]),  # its norm overflows
        (spoil("3.weight", 1e18), torch.full((3, 2), 1e21), ["3"]),  # a fine weight whose output overflows
        (spoil("0.weight", 1e18), torch.full((3, 2), 1e21), ["0", "1", "2"]),  # the first three of four
    ],
)
def test_the_first_layers_concerned(act: Callable[[nn.Module], None], pictures: torch.Tensor, layers: list[str]) -> None:
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            model.state_dict()[name].fill_(0.5)
        act(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert culprits(model, state, [partial(model, x) for x in (torch.zeros(3, 2), pictures)], contextlib.nullcontext()) == layers
    assert not any(module._forward_hooks for module in model.modules())
