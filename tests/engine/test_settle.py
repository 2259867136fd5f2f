"""What is decided for a machine is decided the same before the data set is at hand and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainrun.engine.build import open_data, settle
from trainrun.recipe.load import load
from trainrun.recipe.registry import registry
from trainrun.world import World, native_bf16

CPU = World(torch.device("cpu"))
DATA: list[dict[str, Any]] = [
    {"name": "digits"},
    {"name": "photos10", "crop": 12, "size": 10},
    {"name": "photos10", "size": 10},
    {"name": "synthetic", "shape": [3, 40, 17], "size": 20},
    {"name": "synthetic", "shape": [1, 16, 40], "size": 20},
    {"name": "folder", "size": 20, "validation": 0.5},
    {"name": "folder", "size": 16, "channels": 1, "validation": 0.5},
]


@pytest.fixture
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("pictures")
    for name in ("a", "b"):
        (root / name).mkdir()
        for n in range(2):
            Image.fromarray(np.full((30, 40, 3), n, np.uint8)).save(root / name / f"{n}.png")
    return str(root)


@pytest.mark.parametrize("data", DATA, ids=str)
def test_a_data_set_knows_its_shape_before_it_is_read(pictures: str, data: dict[str, Any]) -> None:
    node = load("digits", [f"data={data | ({'root': pictures} if data['name'] == 'folder' else {})}"]).recipe.data
    part = registry.get("data", node.name)
    assert part is not None
    assert part.facts["shape"](node.options) == open_data(node).train.shape


@pytest.mark.parametrize(("side", "small"), [(16, True), (17, False)])
def test_small_pictures_are_fp32_on_a_cpu(side: int, small: bool) -> None:
    recipe = load("digits", [f"data={{name: synthetic, shape: [3, 40, {side}]}}"]).recipe
    assert settle(recipe, CPU)[0].precision == ("bf16" if native_bf16(CPU.device) and not small else "fp32")
    assert settle(recipe, CPU) == settle(recipe, CPU, (40, side, 3))


def test_what_a_person_wrote_stays() -> None:
    for precision in ("fp32", "bf16"):
        settled, reasons = settle(load("digits", [f"precision={precision}", "memory_format=contiguous", "data.cut=device"]).recipe, CPU)
        assert (settled.precision, settled.memory_format, reasons) == (precision, "contiguous", {})
