"""Losses against their formula in float64."""

from __future__ import annotations

import pytest
import torch

from trainrun.parts.losses import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_its_formula(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5, dtype=torch.float64) * 4, torch.tensor([0, 1, 2, 3, 4, 0])
    q = torch.full((6, 5), smoothing / 5, dtype=torch.float64)
    q[torch.arange(6), targets] += 1 - smoothing
    expected = -(q * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1)
    losses = cross_entropy(logits, targets, label_smoothing=smoothing)
    assert losses.shape == (6,) and losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_takes_probabilities() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    onehot = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(cross_entropy(logits, onehot), cross_entropy(logits, targets))


def test_cross_entropy_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 100)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(torch.randn(16, 8))
        losses = cross_entropy(logits, torch.arange(16))
    assert logits.dtype == torch.bfloat16 and losses.dtype == torch.float32
    expected = torch.logsumexp(logits.double(), 1) - logits.double()[torch.arange(16), torch.arange(16)]
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
