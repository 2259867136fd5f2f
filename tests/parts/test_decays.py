"""Every warm-up and decay against its formula written out in extended precision, NumPy's curves, or torch's schedulers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rates import torch_lrs
from scipy import stats
from torch.optim import lr_scheduler

from trainrun.errors import UserError
from trainrun.parts.schedules import Schedule, make_schedule
from trainrun.recipe import schema
from trainrun.recipe.registry import PartNode, registry

LR = 0.4
L = np.longdouble


def node(kind: str, name: str, **options: Any) -> PartNode:
    model = registry.get(kind, name).options.model_validate(options)  # type: ignore[union-attr]  # it is registered
    return PartNode(kind, name, {key: getattr(model, key) for key in type(model).model_fields})


def made(name: str, total: int = 100, warmup: PartNode | None = None, seed: int = 0, **options: Any) -> Schedule:
    written = schema.Schedule(lr=LR, warmup=warmup or node("warmup", "none"), decay=node("decay", name, **options))
    return make_schedule(written, total, 10, seed=seed)


def gradual(steps: int) -> PartNode:
    return node("warmup", "gradual", **{"for": f"{steps}st"})


def x(t: int, span: int) -> Any:
    return L(t) / L(span)


def cos(value: Any) -> Any:
    # pi to the 64 bits of a long double
    return np.cos(L("3.14159265358979323846264338327950288") * value)


# TensorFlow 1's functions of (global_step, decay_steps), as its documentation writes them, with learning_rate 0.4.


def tf_exponential(t: int, span: int) -> Any:
    return L("0.4") * L("0.96") ** x(t, span)


def tf_exponential_stairs(t: int, span: int) -> Any:
    return L("0.4") * L("0.96") ** np.floor(x(t, span))


def tf_natural(t: int, span: int) -> Any:
    return L("0.4") * np.exp(-L("0.7") * x(t, span))


def tf_natural_stairs(t: int, span: int) -> Any:
    return L("0.4") * np.exp(-L("0.7") * np.floor(x(t, span)))


def tf_polynomial(t: int, span: int) -> Any:
    return (L("0.4") - L("0.01")) * (1 - x(min(t, span), span)) ** L("1.7") + L("0.01")


def tf_polynomial_cycle(t: int, span: int) -> Any:
    longer = span * math.ceil(Fraction(t, span)) if t else span
    return (L("0.4") - L("0.01")) * (1 - x(t, longer)) ** L("1.7") + L("0.01")


def tf_cosine(t: int, span: int) -> Any:
    decayed = (1 - L("0.1")) * (L("0.5") * (1 + cos(x(min(t, span), span)))) + L("0.1")
    return L("0.4") * decayed


def tf_cosine_restarts(t: int, span: int) -> Any:
    length, number, rest = Fraction(span), 0, Fraction(t)
    while rest >= length:
        rest, length, number = rest - length, length * Fraction(3, 2), number + 1
    fraction = rest / length
    cosine = L("0.5") * L("0.8") ** number * (1 + cos(x(fraction.numerator, fraction.denominator)))
    return L("0.4") * ((1 - L("0.1")) * cosine + L("0.1"))


def tf_linear_cosine(t: int, span: int) -> Any:
    t = min(t, span)
    linear = L(span - t) / L(span)
    cosine = L("0.5") * (1 + cos(2 * L("1.5") * x(t, span)))
    return L("0.4") * ((L("0.2") + linear) * cosine + L("0.01"))


TENSORFLOW = [
    ("exponential", {"rate": 0.96}, tf_exponential),
    ("exponential", {"rate": 0.96, "staircase": True}, tf_exponential_stairs),
    ("natural_exponential", {"rate": 0.7}, tf_natural),
    ("natural_exponential", {"rate": 0.7, "staircase": True}, tf_natural_stairs),
    ("polynomial", {"power": 1.7, "end": 0.01}, tf_polynomial),
    ("polynomial", {"power": 1.7, "end": 0.01, "cycle": True}, tf_polynomial_cycle),
    ("cosine", {"alpha": 0.1}, tf_cosine),
    ("cosine_restarts", {"multiplier": 1.5, "peaks": 0.8, "alpha": 0.1}, tf_cosine_restarts),
    ("linear_cosine", {"num_periods": 1.5, "alpha": 0.2, "beta": 0.01}, tf_linear_cosine),
    ("noisy_linear_cosine", {"num_periods": 1.5, "alpha": 0.2, "beta": 0.01, "initial_variance": 0.0}, tf_linear_cosine),
]


@pytest.mark.parametrize(("name", "options", "formula"), TENSORFLOW)
@pytest.mark.parametrize("warmup", [0, 20])
@pytest.mark.parametrize("span", [None, 7, 40])
def test_tensorflows_formulas(name: str, options: dict[str, Any], formula: Any, warmup: int, span: int | None) -> None:
    """From the warm-up's end on, over a span that is given or is what the warm-up leaves; at its ends and far beyond."""
    length = span or 100 - warmup
    key = "first" if name == "cosine_restarts" else "steps"
    steps = {key: f"{length}st"} if span or key == "first" else {}
    schedule = made(name, warmup=gradual(warmup) if warmup else None, **options, **steps)
    for t in [0, 1, 2, length // 2, length - 1, length, length + 1, 2 * length, 2 * length + 1, 3 * length, 17 * length + 3]:
        assert abs(schedule(warmup + t) - formula(t, length)) <= 1e-12 * LR, t
    if warmup:
        assert schedule(warmup // 2) == pytest.approx(float(formula(0, length)) / 2, rel=1e-12)


def test_the_noise_is_tensorflows_up_to_the_generator() -> None:
    """Mean 0 and variance initial_variance / (1 + t)^variance_decay, normal: Kolmogorov-Smirnov with p > 1e-4, so 1 run in 10,000 errs."""
    quiet, t, count = made("linear_cosine"), 30, 2000
    cosine = 0.5 * (1 + math.cos(math.pi * t / 100))
    std = math.sqrt(0.02 / (1 + t) ** 0.4)
    drawn = [made("noisy_linear_cosine", seed=seed, initial_variance=0.02, variance_decay=0.4)(t) for seed in range(count)]
    noise = [(lr - quiet(t)) / LR / cosine / std for lr in drawn]
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    along = made("noisy_linear_cosine", total=10**6, initial_variance=1e-4, variance_decay=0.0)
    line = made("linear_cosine", total=10**6)
    noise = [(along(t) - line(t)) / LR / 1e-2 for t in range(count)]  # the cosine is 1 to 1e-5 here
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / math.sqrt(count)


def test_the_noise_is_a_function_of_seed_and_step() -> None:
    one, same, other = (made("noisy_linear_cosine", seed=seed) for seed in (1, 1, 2))
    forwards = [one(t) for t in range(100)]
    assert [same(t) for t in reversed(range(100))] == forwards[::-1]
    assert all(a != b for a, b in zip(forwards, (other(t) for t in range(100)), strict=True) if a or b)
    assert min(forwards) == 0.0  # where TensorFlow's would climb


def test_torchs_schedulers() -> None:
    def check(schedule: Schedule, make: Callable[[Any], Any], lr: float = LR, steps: int = 100) -> None:
        assert [schedule(t) for t in range(steps)] == pytest.approx(torch_lrs(lr, steps, make), rel=1e-9, abs=1e-15)

    check(made("step", every="3ep", gamma=0.3), lambda o: lr_scheduler.StepLR(o, 30, 0.3))
    check(made("step", every="25%"), lambda o: lr_scheduler.StepLR(o, 25, 0.1))
    check(made("polynomial", power=2.0), lambda o: lr_scheduler.PolynomialLR(o, 100, 2.0))
    check(made("linear", alpha=0.1, steps="60st"), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 60))
    check(
        made("cosine_restarts", first="1ep", multiplier=2.0, alpha=0.1), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 2, 0.04)
    )
    check(made("cosine_restarts", first="1ep", multiplier=1.0), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 1))
    for anneal, shape in (("cos", "cosine"), ("linear", "linear")):
        # torch's last step, number 100 of 101, is ours at the end of 100.
        options: dict[str, Any] = {"total_steps": 101, "pct_start": 31 / 101, "anneal_strategy": anneal, "cycle_momentum": False}
        check(made("one_cycle", shape=shape), lambda o, options=options: lr_scheduler.OneCycleLR(o, LR, **options), steps=101)
    for mode, gamma in (("triangular", 1.0), ("triangular2", 0.5)):
        cyclic = {"step_size_up": 8, "step_size_down": 12, "mode": mode, "cycle_momentum": False}
        check(
            made("triangular", peak=0.4, initial=0.25, alpha=0.25, gamma=gamma, steps="20st"),
            lambda o, cyclic=cyclic: lr_scheduler.CyclicLR(o, 0.1, LR, **cyclic),
            lr=0.1,
        )


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (made("triangular", peak=0.2, initial=0.1, alpha=0.05), {0: 0.1, 20: 1.0, 100: 0.05, 500: 0.05}),
        (made("triangular", peak=0.0), {0: 1.0, 100: 0.0, 101: 0.0}),
        (made("triangular", peak=1.0), {0: 0.0, 99: 0.99}),
        (made("trapezoid"), {0: 1.0, 80: 1.0, 100: 0.0, 120: 0.0}),
        (made("trapezoid", rise="1ep", fall="50st", initial=0.2, alpha=0.1), {0: 0.2, 10: 1.0, 50: 1.0, 100: 0.1, 300: 0.1}),
        (made("trapezoid", fall="30%", warmup=gradual(20)), {0: 0.0, 20: 1.0, 70: 1.0, 100: 0.0}),
        (made("linear", warmup=gradual(20), alpha=0.5), {0: 0.0, 20: 1.0, 100: 0.5, 110: 0.5}),
        (made("one_cycle", rise="40st", initial=0.1, alpha=0.0, shape="linear", steps="80st"), {0: 0.1, 40: 1.0, 80: 0.0, 200: 0.0}),
    ],
)
def test_straight_lines_are_numpys(schedule: Schedule, corners: dict[int, float]) -> None:
    steps = range(max(corners) + 1)
    expected = LR * np.interp(steps, list(corners), list(corners.values()))
    assert np.abs([schedule(t) for t in steps] - expected).max() < 1e-15


def test_the_fall_of_a_trapezoid_by_the_square_root() -> None:
    schedule = made("trapezoid", fall="40st", alpha=0.1, shape="sqrt")
    assert [schedule(t) for t in (60, 70, 100)] == pytest.approx([LR, LR * (0.1 + 0.9 * 0.5), LR * 0.1], rel=1e-12)


def test_inverse_sqrt_is_the_transformers() -> None:
    """lr proportional to min(step^-0.5, step x warmup^-1.5)."""
    schedule = made("inverse_sqrt", warmup=gradual(25))
    for t in range(1, 300):
        assert schedule(t) == pytest.approx(LR * math.sqrt(25) * min(t**-0.5, t * 25**-1.5), rel=1e-12)
    free = made("inverse_sqrt", timescale="3ep")
    assert [free(t) for t in (0, 30, 90)] == pytest.approx([LR, LR / math.sqrt(2), LR / 2], rel=1e-12)


def test_the_exponential_warmup_is_a_geometric_series() -> None:
    schedule = made("constant", warmup=node("warmup", "exponential", **{"for": "2ep"}, start=0.001))
    assert [schedule(t) for t in range(21)] == pytest.approx(np.geomspace(0.001, LR, 21).tolist(), rel=1e-12)
    assert schedule(500) == LR


def test_the_constant_warmup_for_a_while() -> None:
    schedule = made("step", every="5st", gamma=0.5, warmup=node("warmup", "constant", lr=0.1, **{"for": "7st"}))
    assert [schedule(t) for t in (0, 4, 5, 6, 7, 10)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.2, 0.1], rel=1e-12)


UNTIL = node("warmup", "constant", lr=0.1, until_train_error=0.8, over="10st")


def test_a_warmup_that_a_training_error_ends() -> None:
    schedule = made("linear", warmup=UNTIL)
    assert (schedule.window, schedule.until) == (10, 0.8)
    lows = [(10, 0.9), (20, 0.8), (40, 0.79), (60, 0.2)]  # below, so 0.8 itself does not do
    assert [schedule(t, lows) for t in (0, 39, 40, 41, 70, 100)] == pytest.approx(
        [0.1, 0.1, LR, LR * 59 / 60, LR * 30 / 60, 0.0], abs=1e-15
    )
    assert [schedule(t, lows[:2]) for t in (0, 39, 40, 99)] == [pytest.approx(0.1)] * 4
    # What came later has no say in the rate of an earlier step.
    assert [schedule(t, lows) for t in range(40)] == [schedule(t) for t in range(40)]


def test_plateau_is_torchs() -> None:
    """On 60 random walks of 40 evaluations, one after each of the steps 1 to 40; torch's patience is one less for the same steps."""
    chance = random.Random(0)
    reduced = 0
    for n in range(60):
        monitor, mode = chance.choice([("val_loss", "min"), ("val_accuracy", "max")])
        patience, cooldown = chance.randint(1, 4), chance.randint(0, 3)
        options = {"factor": 0.5, "min_lr": chance.choice([0.0, 0.06])}
        min_delta = chance.choice([0.0, 0.1])
        schedule = made("plateau", monitor=monitor, patience=patience, cooldown=cooldown, min_delta=min_delta, **options)
        figures = [float(v) for v in np.cumsum([chance.choice([-0.2, -0.05, 0.0, 0.05, 0.2]) for _ in range(40)])]
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
        theirs = lr_scheduler.ReduceLROnPlateau(
            optimizer, mode, patience=patience - 1, threshold=min_delta, threshold_mode="abs", cooldown=cooldown, eps=0.0, **options
        )
        seen = [{"step": t, "val_loss": math.nan, "val_accuracy": math.nan, monitor: v} for t, v in enumerate(figures, 1)]
        for t, value in enumerate(figures, 1):
            theirs.step(value)
            assert schedule(t, evaluations=seen) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), (n, t)
        reduced += schedule(40, evaluations=seen) < LR
    assert reduced > 30


def test_plateau_counts_from_the_warmups_end() -> None:
    schedule = made("plateau", patience=2, warmup=gradual(20))
    seen = [{"step": t, "val_loss": 1.0, "val_accuracy": 0.5} for t in range(5, 60, 5)]
    assert schedule(10, evaluations=seen) == pytest.approx(LR / 2)
    # The first that counts is that of step 25, and two more are no better.
    assert [schedule(t, evaluations=seen) for t in (34, 35, 44, 45)] == pytest.approx([LR, LR / 10, LR / 10, LR / 100], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("one_cycle", {"rise": "100st"}, "100 steps in all and spends 100 in the rise"),
        ("trapezoid", {"rise": "50st", "fall": "51%"}, "rises for 50 steps and falls for 51, and the training has 100"),
    ],
)
def test_shapes_that_find_no_room_are_found_before_the_run(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name, **options)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("warmup", "constant", {}),
        ("warmup", "constant", {"lr": 0.1, "until_train_error": 80}),
        ("warmup", "constant", {"lr": 0.1, "over": "5%"}),
        ("warmup", "exponential", {"for": "1ep", "start": 0.0}),
        ("decay", "step", {"gamma": 0.1}),
        ("decay", "exponential", {}),
        ("decay", "exponential", {"rate": 1.0}),
        ("decay", "natural_exponential", {"rate": 0.0}),
        ("decay", "polynomial", {"power": 0.0}),
        ("decay", "cosine_restarts", {"first": "1ep", "multiplier": 0.5}),
        ("decay", "triangular", {"peak": 1.5}),
        ("decay", "plateau", {"factor": 1.0}),
        ("decay", "plateau", {"monitor": "train_loss"}),
    ],
)
def test_wrong_options_are_refused(kind: str, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        node(kind, name, **options)
