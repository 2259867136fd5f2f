"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import trainrun.parts  # noqa: F401 - registers the built-in parts
from trainrun.recipe.registry import registry


@pytest.fixture(autouse=True)
def no_part_outlives_its_test() -> Iterator[None]:
    """What a test's plugins register is unknown to the next test."""
    before = registry.snapshot()
    yield
    registry.restore(before)
