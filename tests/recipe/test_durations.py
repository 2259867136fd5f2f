"""Durations against their meaning."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trainrun.recipe.durations import Duration, Epochs, Interval, Span, Steps


@pytest.mark.parametrize(
    ("kind", "given", "duration"),
    [
        (Epochs, 90, Duration(90, "ep")),
        (Epochs, 0.5, Duration(0.5, "ep")),
        (Epochs, "90ep", Duration(90, "ep")),
        (Epochs, " 90 ep ", Duration(90, "ep")),
        (Epochs, "500st", Duration(500, "st")),
        (Steps, 10, Duration(10, "st")),
        (Span, "2.5%", Duration(2.5, "%")),
        (Span, "100%", Duration(100, "%")),
        (Interval, "60s", Duration(60, "s")),
        (Interval, Duration(60, "s"), Duration(60, "s")),
    ],
)
def test_what_a_duration_is(kind: Any, given: Any, duration: Duration) -> None:
    assert TypeAdapter(kind).validate_python(given) == duration


@pytest.mark.parametrize(
    ("kind", "given"),
    [(Epochs, "5%"), (Epochs, "60s"), (Steps, 0.5), (Steps, "1.5st"), (Span, 5), (Span, "101%"), (Interval, 60), (Interval, "5%")]
    + [
        (Epochs, bad)
        for bad in (
            "",
            "ep",
            "90",
            "90 epochs",
            "-1ep",
            "0ep",
            "1e3ep",
            "٣ep",
            "9" * 400 + "ep",
            0,
            -1,
            True,
            None,
            [],
            float("inf"),
            float("nan"),
            10**99,
        )
    ],
)
def test_what_no_duration_is(kind: Any, given: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(given)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (Duration(3, "st"), 3),
        (Duration(2, "ep"), 20),
        (Duration(0.25, "ep"), 3),  # 2.5 steps, half up
        (Duration(0.24, "ep"), 2),
        (Duration(50, "%"), 50),
        (Duration(0.5, "%"), 1),  # half a step, half up
        (Duration(100, "%"), 100),
    ],
)
def test_steps_of_10_an_epoch_in_a_run_of_100(duration: Duration, steps: int) -> None:
    assert duration.steps(10, 100) == steps


def test_a_share_needs_the_whole_and_a_time_is_no_count() -> None:
    with pytest.raises(ValueError, match="length is not known"):
        Duration(5, "%").steps(10)
    with pytest.raises(ValueError, match="is a time"):
        Duration(5, "s").steps(10, 100)
