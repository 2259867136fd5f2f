"""Published networks: every name of torchvision, the smallest pictures, weights that fit or do not; timm by a stand-in."""

from __future__ import annotations

import sys
import types
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import regnet

from trainrun.errors import UserError
from trainrun.parts import models  # noqa: F401  # registers
from trainrun.parts.models.nets import from_torchvision, weights
from trainrun.parts.models.published import TORCHVISION
from trainrun.recipe.registry import registry


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **options: Any) -> nn.Module:
    part = registry.get("model", name)
    assert part is not None
    valid = part.options.model_validate(options)
    return part.call({key: getattr(valid, key) for key in type(valid).model_fields})(shape, classes)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build without memory or time. RegNet computes its widths with tensors, which must then be real."""
    widths = regnet.BlockParams.from_init_params.__func__  # type: ignore[attr-defined]  # the function behind the class method

    def real(cls: type, *args: Any, **options: Any) -> Any:
        with torch.device("cpu"):
            return widths(cls, *args, **options)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", classmethod(real))
    with torch.device("meta"):
        yield


def test_the_names_are_torchvisions() -> None:
    assert sorted(TORCHVISION) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert len(set(TORCHVISION)) == len(TORCHVISION)


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_network_takes_other_classes_and_channels(name: str, meta: None) -> None:
    model = build(name, (1, 224, 224), 7)
    stem, head = weights.ends(model)
    assert model.get_submodule(stem).in_channels == 1
    assert model.get_submodule(head).weight.shape[0] == 7
    assert not any("aux" in key.lower() for key in model.state_dict())


# One of each family: the others differ in depth and width only.
@pytest.mark.parametrize(
    ("name", "side"),
    [("alexnet", 63), ("convnext_tiny", 32), ("densenet121", 29), ("efficientnet_b0", 1), ("efficientnet_v2_s", 1), ("googlenet", 15),
     ("inception_v3", 75), ("maxvit_t", 224), ("mnasnet0_5", 1), ("mobilenet_v2", 1), ("mobilenet_v3_small", 1), ("regnet_x_400mf", 1),
     ("resnet18", 1), ("resnext50_32x4d", 1), ("shufflenet_v2_x0_5", 1), ("squeezenet1_0", 21), ("squeezenet1_1", 17), ("swin_t", 4),
     ("swin_v2_t", 4), ("vgg11", 32), ("vgg11_bn", 32), ("vit_b_16", 16), ("vit_b_32", 32), ("vit_h_14", 14)],
)  # fmt: skip
def test_the_smallest_picture_works_and_a_smaller_one_is_refused(name: str, side: int, meta: None) -> None:
    assert build(name, (1, side, side), 7).eval()(torch.empty(2, 1, side, side)).shape == (2, 7)
    if side > 1:
        with pytest.raises(UserError, match=rf"data.size={side}"):
            build(name, (1, side - 1, side - 1), 7)
    if side > 1 and not name.startswith(("vit", "maxvit")):  # the table claims no more than torchvision itself does
        bare = torchvision.models.get_model(name, weights=None, **from_torchvision._options(name, side, side)).eval()
        with pytest.raises(RuntimeError):
            bare(torch.empty(2, 3, side - 1, side - 1))


def test_a_vision_transformer_follows_the_picture(meta: None) -> None:
    assert build("vit_b_16", (3, 64, 64), 7).get_parameter("encoder.pos_embedding").shape[1] == 4 * 4 + 1
    with pytest.raises(UserError, match=r"square pictures of a multiple of 16, found 64x48: set data\.size=48"):
        build("vit_b_16", (3, 64, 48), 7)


def test_dropout_reaches_the_dropout_layers_or_is_refused(meta: None) -> None:
    assert {m.p for m in build("vgg11", dropout=0.25).modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert {m.p for m in build("vgg11").modules() if isinstance(m, nn.Dropout)} == {0.5}
    with pytest.raises(UserError, match="resnet18 has no dropout layer"):
        build("resnet18", dropout=0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "channels_last"), ("convnext_tiny", "channels_last"), ("vit_b_16", "contiguous"), ("swin_v2_t", "contiguous"),
     ("maxvit_t", "contiguous"), ("timm/vit_tiny_patch16_224", "contiguous"), ("timm/resnet50d", "channels_last")],
)  # fmt: skip
def test_memory_format_is_known_beforehand(name: str, expected: str) -> None:
    part = registry.get("model", name)
    assert part is not None and part.facts["memory_format"](name) == expected


@pytest.fixture(scope="module")
def imagenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


def test_a_file_of_the_same_classes_gives_torchvisions_network(imagenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(imagenet, tmp_path / "w.safetensors")
    ours, theirs = build("resnet18", (3, 64, 64), 1000, weights=str(tmp_path / "w.safetensors")), torchvision.models.resnet18(weights=None)
    theirs.load_state_dict(imagenet)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("classes", "new"), [(1000, set()), (7, {"fc.weight", "fc.bias"})])
def test_what_a_file_covers_is_known(classes: int, new: set[str], imagenet: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(imagenet, tmp_path / "w.safetensors")
    model: Any = build("resnet18", (1, 64, 64), classes, weights=str(tmp_path / "w.safetensors"))
    assert set(model.state_dict()) - model.covered == new
    assert not hasattr(build("resnet18", (3, 64, 64), 7), "covered")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_grey_picture_gives_the_same_features_in_any_number_of_channels(
    channels: int, imagenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"model": imagenet}, tmp_path / "w.pth")
    model = build("resnet18", (channels, 64, 64), 7, weights=str(tmp_path / "w.pth"))
    assert model.fc.weight.shape == (7, 512)
    grey, kernel = torch.randn(2, 1, 64, 64), imagenet["conv1.weight"]
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), kernel, stride=2, padding=3)
    if channels == 2:  # two of three kernels, scaled: the sums differ, and timm's rule keeps only their mean size
        expected = nn.functional.conv2d(grey.expand(-1, 2, -1, -1), kernel[:, :2] * 1.5, stride=2, padding=3)
    if channels == 4:
        expected = nn.functional.conv2d(grey, (kernel.sum(1) + kernel[:, 0])[:, None] * 0.75, stride=2, padding=3)
    torch.testing.assert_close(model.conv1(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.layer4[1].conv2.weight, imagenet["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "extra.weight is unknown"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"bn1.weight is \[3\], not \[64\]"),
        (lambda s: s.clear(), r"\(and \d+ more\)"),
    ],
)
def test_a_file_that_does_not_fit_names_the_first_keys(
    change: Any, message: str, imagenet: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(imagenet)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        build("resnet18", weights=str(tmp_path / "w.pth"))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights at"):
        build("resnet18", weights=str(tmp_path / "none.pth"))
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build("resnet18", weights=str(tmp_path / "w.safetensors"))
    torch.save({"a": 1}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        build("resnet18", weights=str(tmp_path / "w.pth"))
    torch.save(types.SimpleNamespace(a=1), tmp_path / "code.pth")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        build("resnet18", weights=str(tmp_path / "code.pth"))


@pytest.mark.parametrize("name", ["mnasnet0_75", "densenet121"])
def test_versioned_networks_load_from_files_without_versions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = build(name, (3, 64, 64), 1000, weights=str(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_densenets_old_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    state = build("densenet121").state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    monkeypatch.setattr(weights, "read", lambda path: old)
    assert all(torch.equal(value, state[key]) for key, value in build("densenet121", weights="old.pth").state_dict().items())


def test_a_position_embedding_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.vit_b_32(weights=None, image_size=64, num_classes=2).state_dict()
    state["encoder.pos_embedding"] = torch.ones_like(state["encoder.pos_embedding"])
    monkeypatch.setattr(weights, "read", lambda path: state)
    embedding = build("vit_b_32", (3, 96, 96), 3, weights="w.pth").get_parameter("encoder.pos_embedding")
    assert embedding.shape == (1, 10, 768)
    torch.testing.assert_close(embedding, torch.ones_like(embedding))


def test_published_weights_are_downloaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    state, calls = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True).state_dict(), []

    def download(url: str, **options: Any) -> Any:
        calls.append((url, options))
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    model = build("googlenet", (3, 64, 64), 7, weights="DEFAULT")
    assert torch.equal(model.conv1.conv.weight, state["conv1.conv.weight"]) and model.transform_input
    url = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.url
    assert calls == [(url, {"progress": True, "check_hash": True, "weights_only": True})]
    assert not build("googlenet", (1, 64, 64), 7, weights="DEFAULT").transform_input
    calls.clear()
    with weights.unread():  # for a checkpoint's own, which expect the same pictures
        assert build("googlenet", (3, 64, 64), 7, weights="DEFAULT").transform_input and not calls


def test_no_network_says_where_the_file_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, **options: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(UserError, match=r"cannot download https://\S+/squeezenet1_1-\w+\.pth .*put it at .*checkpoints/squeezenet1_1"):
        build("squeezenet1_1", weights="IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [("resnet50", "IMAGENET1K_V3", "did you mean IMAGENET1K_V"), ("resnet50", "xxx", "there are IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT")],
)
def test_unknown_weights_name_the_nearest(name: str, given: str, message: str, meta: None) -> None:
    with pytest.raises(UserError, match=message):
        build(name, weights=given)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for timm that records how its networks are asked for."""
    fake: Any = types.SimpleNamespace(calls=[], offline=False)

    def create_model(name: str, **options: Any) -> nn.Module:
        fake.calls.append((name, options))
        if fake.offline:
            raise ConnectionError("no route")
        return nn.Sequential(
            nn.Conv2d(options["in_chans"], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, options["num_classes"])
        )

    fake.create_model = create_model
    fake.list_models = lambda: ["resnet50d", "vit_tiny_patch16_224"]
    fake.is_model = lambda name: name in fake.list_models()
    fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(fixed_input_size=name.startswith("vit"), input_size=(3, 224, 224), num_classes=1000)
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_timm_networks_are_built_by_name(timm: Any) -> None:
    pretrained: Any = build("timm/resnet50d.ra2_in1k", (1, 64, 64), 7, weights="pretrained")
    assert pretrained(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    assert {key.rpartition(".")[0] for key in set(pretrained.state_dict()) - pretrained.covered} == {weights.ends(pretrained)[1]}
    build("timm/vit_tiny_patch16_224", (3, 64, 64), 7)
    build("timm/vit_tiny_patch16_224", (3, 224, 224), 7)
    plain = {"pretrained": False, "num_classes": 7, "in_chans": 3}
    assert timm.calls == [
        ("resnet50d.ra2_in1k", {"pretrained": True, "num_classes": 7, "in_chans": 1}),
        ("vit_tiny_patch16_224", plain | {"img_size": (64, 64)}),
        ("vit_tiny_patch16_224", plain),
    ]


def test_timm_loads_a_file(timm: Any, tmp_path: Path) -> None:
    source = build("timm/resnet50d", classes=5)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build("timm/resnet50d", classes=7, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(loaded[0].weight, source[0].weight) and loaded[3].weight.shape == (7, 4)


def test_timm_mistakes(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean timm/resnet50d"):
        build("timm/resnet50")
    with pytest.raises(UserError, match=r"set model\.weights=pretrained"):
        build("timm/resnet50d", weights="IMAGENET1K_V1")
    timm.offline = True
    with pytest.raises(UserError, match=r"no route.*local file"):
        build("timm/resnet50d", weights="pretrained")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'trainrun\[timm\]'"):
        build("timm/resnet50d")
