"""Durations as a person writes them ("90ep", "500st", "5%", "60s"), turned into steps in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

Unit = Literal["ep", "st", "%", "s"]
_TEXT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,30})?)\s*(ep|st|%|s)")
_EXAMPLE = {"ep": "10ep (epochs)", "st": "500st (steps)", "%": "5% (of the run)", "s": "60s (seconds)"}


@dataclass(frozen=True)
class Duration:
    """A length of training: a number of epochs, steps or seconds, or a share of the whole run."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        exact = format(Decimal(repr(float(self.value))), "f")  # never 1e-07, which is no duration
        return (exact.removesuffix(".0") if "." in exact else exact) + self.unit

    def steps(self, steps_per_epoch: int, total: int | None = None) -> int:
        """Whole steps, rounded half up; `total` is the length of the run in steps, which a percentage needs."""
        match self.unit:
            case "st":
                return int(self.value)
            case "ep":
                return math.floor(self.value * steps_per_epoch + 0.5)
            case "%":
                if total is None:
                    raise ValueError(f"{self} is a share of a run whose length is not known here")
                return math.floor(self.value * total / 100 + 0.5)
            case "s":
                raise ValueError(f"{self} is a time, not a number of steps")


def expectation(units: tuple[Unit, ...], bare: Unit | None = None) -> str:
    """What a duration in `units` is, in words."""
    *most, last = (_EXAMPLE[u] for u in units)
    words = "a duration such as " + (f"{', '.join(most)} or {last}" if most else last)
    return f"{words}; a plain number counts in {bare}" if bare else words


def parse(units: tuple[Unit, ...], bare: Unit | None = None) -> Callable[[Any], Duration]:
    """A validator that accepts durations in `units`; a number without a unit counts in `bare`, where that is given."""
    expected = expectation(units, bare)

    def validate(given: Any) -> Duration:
        if isinstance(given, Duration):
            value, unit = given.value, given.unit
        elif isinstance(given, (int, float)) and not isinstance(given, bool) and bare and math.isfinite(given):
            value, unit = float(given), bare
        elif isinstance(given, str) and (match := _TEXT.fullmatch(given.strip())):
            value, unit = float(match[1]), match[2]  # type: ignore[assignment]  # the pattern admits only units
        else:
            raise PydanticCustomError("duration", "{expected}", {"expected": expected})
        if unit not in units or value <= 0 or (unit == "st" and value != int(value)) or (unit == "%" and value > 100) or value >= 1e12:
            raise PydanticCustomError("duration", "{expected}", {"expected": expected})
        return Duration(value, unit)

    return validate


def _type(units: tuple[Unit, ...], bare: Unit | None = None) -> Any:
    text: dict[str, Any] = {"type": "string", "pattern": rf"^\d+(\.\d+)?\s*({'|'.join(units)})$"}
    schema: dict[str, Any] = {"anyOf": [text, {"type": "number", "exclusiveMinimum": 0}]} if bare else text
    schema["errorMessage"] = expectation(units, bare)  # shown by editors, and the source of our own words
    return Annotated[
        Duration,
        BeforeValidator(parse(units, bare)),
        PlainSerializer(str, return_type=str),
        WithJsonSchema(schema),
    ]


# The lengths that recipes speak of. A part's option says which it takes by naming one of them.
Epochs = _type(("ep", "st"), bare="ep")
Span = _type(("ep", "st", "%"))
Interval = _type(("ep", "st", "s"))
Steps = _type(("ep", "st"), bare="st")
WholeEpochs = _type(("ep",), bare="ep")  # that they are whole is seen to by a check of the recipe
