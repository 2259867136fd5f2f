"""`trainrun show RECIPE --init` against numbers computed by hand, and networks whose fault is known."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import trainrun.parts  # noqa: F401 - registers the parts
from trainrun.cli import main
from trainrun.engine.build import build, open_data, settle
from trainrun.engine.signals import Signals
from trainrun.recipe.load import load
from trainrun.trials.init import Init, Layer, _alike, _Watch, look
from trainrun.world import World

CPU = World(torch.device("cpu"))
BASE: dict[str, Any] = {
    "data": {"name": "synthetic", "shape": [3, 12, 12], "classes": 4, "size": 120, "validation": 0.2},
    "model": {"name": "tiny_convnet", "width": 8, "depth": 2, "norm": "none"},
    "batch_size": 32, "epochs": 1, "schedule": {"lr": 0.1}, "augment": ["normalize"], "precision": "fp32",
}  # fmt: skip


def seen(folder: Path, initializer: Any, **fields: Any) -> Init:
    (folder / "r.yaml").write_text(json.dumps(BASE | {"initializer": initializer} | fields))
    return look(load(folder / "r.yaml").recipe, CPU)


def test_signal_and_gradient_are_those_of_a_pass_by_hand(tmp_path: Path) -> None:
    found = seen(tmp_path, "kaiming_normal", micro_batch=20, augment=[{"name": "random_crop", "padding": 3}, "normalize"])
    recipe, _ = settle(load(tmp_path / "r.yaml").recipe, CPU)
    run = build(recipe, CPU, open_data(recipe.data), Signals())
    batch = next(run.batches(0)).split(20)[0]
    x, labels = run.inputs(batch, training=True)
    first, pool, _, second, _, mean, last = run.model
    a = first(x)
    b = second(pool(a).clamp(min=0))
    c = last(mean(b.clamp(min=0)))
    outs = [a, b, c]
    for out in outs:
        out.retain_grad()
    loss = nn.functional.cross_entropy(c, labels)
    loss.backward()
    assert found.pictures == 20 and found.loss == pytest.approx(loss.item(), rel=1e-5)
    assert [layer.name for layer in found.layers] == ["0", "3", "6"]
    assert [layer.units for layer in found.layers] == [8, 16, 4]
    assert [layer.signal for layer in found.layers] == pytest.approx([out.detach().numpy().std() for out in outs], rel=1e-5)
    assert [layer.gradient for layer in found.layers] == pytest.approx([out.grad.numpy().std() for out in outs], rel=1e-4)
    assert [layer.dead for layer in found.layers] == [int((pool(a) <= 0).all(0).all(1).all(1).sum()), int((b <= 0).all(0).all(1).all(1).sum()), None]


RESIDUAL = {"name": "resnet_cifar", "depth": 8}


@pytest.mark.parametrize(
    ("initializer", "model", "fault"),
    [
        ("kaiming_normal", None, None),
        ("lsuv", None, None),
        ("default", RESIDUAL, None),
        ({"name": "kaiming_normal", "zero_init_residual": True}, RESIDUAL, None),
        ("zeros", None, "dead"),
        ("zeros", RESIDUAL, "dead"),
        ({"name": "constant", "value": 0.05}, None, "alike"),
        ({"name": "constant", "value": 0.05}, RESIDUAL, "alike"),
        ({"name": "normal", "std": 1.0}, None, "loss"),
        ({"name": "normal", "std": 3.0}, RESIDUAL, "loss"),
        ({"name": "kaiming_normal", "zero_init_residual": True}, {**RESIDUAL, "shortcut": "B"}, None),
        ({"name": "normal", "std": 1e-4}, {**BASE["model"], "depth": 4}, "signal_drifts"),
        ({"name": "normal", "std": 1e19}, {**BASE["model"], "depth": 4}, "non_finite"),
        ({"name": "kaiming_normal", "rules": [{"match": "6.weight", "weights": "zeros"}]}, None, "no_gradient"),
        ({"name": "kaiming_normal", "rules": [{"match": "3.bias", "biases": {"name": "constant", "value": -100.0}}]}, None, "dead"),
    ],
)
def test_each_fault_is_told(tmp_path: Path, initializer: Any, model: Any, fault: str | None) -> None:
    found = seen(tmp_path, initializer, model=model or BASE["model"])
    assert found.fault == fault, found.lines(80)
    assert (found.verdict.startswith("Nothing is wrong")) == (fault is None)
    text = found.lines(80).splitlines()
    assert max(map(len, text)) <= 80 and len(text) > len(found.layers) + 3
    document = found.document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["loss_of_a_guess"] == pytest.approx(math.log(4))


def test_units_that_are_alike_are_counted() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 7, dtype=torch.float64)
    assert _alike(rows) == 0
    rows[[3, 9, 30]] = rows[5].clone()
    rows[[12, 13]] = rows[14].clone() + 1e-9
    assert _alike(rows) == 7


def test_dead_and_saturated_units_by_module_and_by_function() -> None:
    class Net(nn.Module):
        def __init__(self, act: Any) -> None:
            super().__init__()
            self.act, self.a = act, nn.Linear(1, 4, bias=False)

        def forward(self, x: Any) -> Any:
            return self.act(self.a(x))

    for act, (dead, saturated) in ((nn.ReLU(), (2, None)), (torch.relu, (2, None)), (nn.functional.gelu, (2, None)), (nn.Sigmoid(), (None, 1)), (torch.tanh, (None, 1))):  # fmt: skip
        net = Net(act)
        with torch.no_grad():
            net.a.weight.copy_(torch.tensor([[-1.0], [0.0], [0.5], [50.0]]))
        watch = _Watch(net)
        with watch:
            net(torch.tensor([[1.0], [2.0]]))
        assert [(layer.dead, layer.saturated) for layer in watch.layers.values()] == [(dead, saturated)]
        assert not net.a._forward_hooks


def test_long_names_and_many_layers_fit(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [Layer(f"stage{n}.block.of.a.long.name.conv{n}", "Conv2d", 512, 10.0**-n, 1e-12 * 10**n, dead=n, alike=n) for n in range(4)]
    text = Init("normal", 10, 64, 2.3, layers).lines(80).splitlines()
    assert max(map(len, text)) <= 80 and text[2].startswith("..") and text[2].count("#") > text[5].split()[2].count("#")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(BASE | {"initializer": "zeros"}))
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["trainrun", "show", "mine.yaml", "--init", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        out = capsys.readouterr().out
        assert json.loads(out)["fault"] == "dead" if words else "the network is dead" in out.replace("\n", " ")


def test_the_picture_shows_the_numbers_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    monkeypatch.setattr("trainrun.trials.init.save", lambda figure, file: drawn.append(figure))
    layers = [Layer("a", "Conv2d", 4, 0.5, 2e-6, dead=1, alike=4), Layer("b", "Linear", 8, math.inf, 0.0, saturated=2, unreached=6)]
    Init("zeros", 10, 64, 2.3, layers).png(tmp_path / "x.png")
    signal, gradient, units = drawn[0].axes
    for axes, values, texts in ((signal, [0.5, math.nan], ["0.5", "inf"]), (gradient, [2e-6, math.nan], ["2e-06", "0"])):
        (line,) = axes.lines
        assert [*line.get_xdata()] == pytest.approx(values, nan_ok=True) and [*line.get_ydata()] == [0, 1]
        assert axes.get_xscale() == "log" and [text.get_text() for text in axes.texts] == texts
    assert [label.get_text() for label in signal.get_yticklabels()] == ["a", "b"] and signal.yaxis_inverted()
    shares = {text.get_text(): [bar.get_width() for bar in bars] for text, bars in zip(units.get_legend().get_texts(), units.containers, strict=True)}
    assert shares == {"dead": [0.25, 0], "saturated": [0, 0.25], "no gradient": [0, 0.75], "alike": [1, 0]}
    assert [round(bar.get_y() + bar.get_height() / 2) for bars in units.containers for bar in bars] == [0, 1] * 4
    assert "zeros, 64 pictures" in drawn[0].get_suptitle() and "Wrong: " in drawn[0].get_suptitle()


def test_the_picture_is_a_png_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "mine.yaml").write_text(json.dumps(BASE | {"initializer": "zeros"}))
    monkeypatch.chdir(tmp_path)
    for words, code in ((["--init", "--png", "a.png", "--json"], 0), (["--pca", "--png", "b.png"], 2)):
        monkeypatch.setattr(sys, "argv", ["trainrun", "show", "mine.yaml", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        out, err = capsys.readouterr()
        assert ("wrote a.png" if code == 0 else "--png says where --augment or --init draws") in err
        assert code or json.loads(out)["fault"] == "dead"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.size == (1320, round(120 * (1.8 + 0.3 * 3)))
        assert len(set(picture.convert("RGB").getdata())) > 20
    assert not (tmp_path / "b.png").exists()
