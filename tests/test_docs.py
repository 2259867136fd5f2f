"""The pages under docs: the reference is fresh, every recipe in it loads, and every link leads somewhere."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import Field

from trainrun.errors import RecipeError
from trainrun.parts.schedules import make_schedule
from trainrun.recipe.kinds import KINDS
from trainrun.recipe.load import Loaded, load
from trainrun.recipe.registry import part, registry

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import make_reference  # noqa: E402  # beside the other tools, not installed
import reference_examples  # noqa: E402  # as above
import reference_pictures  # noqa: E402  # as above

DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "reference").glob("*.md"))
BLOCK = re.compile(r"^```(yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What an example of one line is laid over.
BESIDE = {"data": "data: {name: voc, root: VOCdevkit/VOC2007}\n", "model": "model: tiny_fasterrcnn\n", "mining": ""}
BASE = "data: photos10\nmodel: tiny_convnet\nepochs: 100\nschedule: {lr: 0.1}\n"


@pytest.fixture(scope="module")
def made() -> dict[str, str | Image.Image]:
    """The reference as it should be, made once."""
    return make_reference.reference((DOCS / "README.md").read_text(encoding="utf-8"))


def test_the_reference_is_fresh(made: dict[str, str | Image.Image]) -> None:
    assert list(make_reference.stale(made, DOCS)) == [], "run make docs"


def test_every_part_has_its_place_and_what_can_be_seen_is_shown(made: dict[str, str | Image.Image]) -> None:
    for kind in KINDS:
        page = (DOCS / "reference" / f"{make_reference.page_of(kind)}.md").read_text(encoding="utf-8")
        for name in registry.names(kind):
            assert f"## {name}" in page or f"`{name}`" in page or f"`{name[:-1]}" in page or name.replace("*", r"\*") in page
            if kind in ("warmup", "decay"):
                assert f"]({kind}-{name}.svg)" in page
            for option in registry.get(kind, name).own_options:  # type: ignore[union-attr]  # it was just listed
                assert f"| `{option}` |" in page
    assert "augment-random_crop.png" in (DOCS / "reference/augmentations.md").read_text()
    for path in made:
        assert (DOCS / path).stat().st_size < 200_000


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for page in [DOCS / "README.md", DOCS / "recipes.md", DOCS / "mining.md", DOCS / "detection.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        for target in [*re.findall(r"\]\(([^)]*)\)", text), *re.findall(r'src="([^"]*)"', text)]:
            if not target.startswith("http"):
                file, _, anchor = target.partition("#")
                there = page.parent / file if file else page
                assert there.is_file(), f"{page.name}: {target}"
                heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
                assert not anchor or anchor in map(make_reference._anchor, heads), f"{page.name}: {target}"
    linked = set(re.findall(r"\(reference/(.*?)\.md\)", (DOCS / "README.md").read_text()))
    assert linked == {page.stem for page in PAGES} == {make_reference.page_of(kind) for kind in KINDS}


@pytest.mark.parametrize("page", [*PAGES, DOCS / "mining.md"], ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_every_example_loads(page: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    examples = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert examples
    for _, text in examples:
        named = [(kind, node if isinstance(node, str) else node["name"]) for kind, node in yaml.safe_load(text).items() if kind in BESIDE]
        detects = any(part.facts.get("task") == "detection" for at in named if (part := registry.get(*at)))
        beside = "".join(line for kind, line in BESIDE.items() if detects and f"{kind}:" not in text)
        (tmp_path / "beside.yaml").write_text(beside)
        (tmp_path / "example.yaml").write_text(f"extends: {'[base.yaml, beside.yaml]' if beside else 'base.yaml'}\n{text}")
        load(tmp_path / "example.yaml")


def test_every_example_of_detection_loads(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE.replace("tiny_convnet", "tiny_fasterrcnn"))
    examples = BLOCK.findall((DOCS / "detection.md").read_text(encoding="utf-8"))
    assert len(examples) == 3
    for _, text in examples:
        (tmp_path / "example.yaml").write_text(f"extends: base.yaml\n{text}")
        load(tmp_path / "example.yaml")


def test_every_recipe_of_the_pages_loads_or_says_why_not(tmp_path: Path) -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    (tmp_path / "base.yaml").write_text(BASE)
    loaded: dict[str, Loaded] = {}
    for language, block in BLOCK.findall(text):
        named = re.match(r"# (\w+\.(?:yaml|py))\n", block)
        assert named or block.startswith("# refused: "), block
        file = tmp_path / (named[1] if named else "refused.yaml")
        file.write_text(block)
        if refused := re.match(r"# refused: (.*)", block):
            with pytest.raises(RecipeError, match=re.escape(refused[1])):
                load(file)
        elif re.match(r".*\n# fragment: ", block):
            with pytest.raises(RecipeError, match="missing"):
                load(file)
            (tmp_path / "whole.yaml").write_text(f"extends: [base.yaml, {file.name}]\n")
            load(tmp_path / "whole.yaml")
        elif language == "yaml":
            loaded[file.name] = load(file, allow_plugins=True)
    # What the prose says of them.
    assert loaded["mine.yaml"].recipe.schedule.decay.name == "multistep" and loaded["mine.yaml"].recipe.schedule.lr == 0.05
    assert [node.name for node in loaded["ours.yaml"].recipe.augment] == ["horizontal_flip", "normalize"]
    assert loaded["halved.yaml"].recipe.schedule.decay.options["times"] == 4
    assert loaded["least.yaml"].recipe.name == "least"
    with pytest.raises(RecipeError, match="--allow-plugins"):
        load(tmp_path / "halved.yaml")
    for words in re.findall(r"^\$ trainrun \w+ photos.yaml(.*?)(?:#.*)?$", text, re.MULTILINE):
        overrides = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', words) if "=" in word]
        load(tmp_path / "photos.yaml", overrides)


def points(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    (line,) = root.findall("{http://www.w3.org/2000/svg}polyline")
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("warmup", "decay") for name in registry.names(kind)])
def test_a_curve_is_the_schedule(kind: str, name: str, made: dict[str, str | Image.Image]) -> None:
    """Between the corners that were kept, the line is within a fifth of a pixel of every learning rate."""
    svg = made[f"reference/{kind}-{name}.svg"]
    assert isinstance(svg, str) and len(svg) < 20_000
    epochs = 20 if kind == "warmup" else 100
    schedule = make_schedule(reference_examples.example(registry.get(kind, name))[1].recipe.schedule, epochs * 10, 10)  # type: ignore[arg-type]  # listed
    top = float(re.findall(r">([\d.e-]+)</text>", svg)[0])
    rates = np.array([schedule(step) for step in range(epochs * 10)])
    drawn = np.array(points(svg))
    x = 52 + np.arange(len(rates)) / len(rates) * (480 - 52 - 12)
    assert rates.max() <= top * (1 + 1e-9)
    assert np.abs(np.interp(x, drawn[:, 0], drawn[:, 1]) - (136 - rates / top * 124)).max() < 0.2 + 124 * np.abs(np.diff(rates)).max() / top * 0.13


def test_a_picture_is_stale_when_it_differs_beyond_rounding(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 250, (64, 64, 3), dtype=np.uint8)
    drawn = reference_pictures.strip([values, values])
    file = tmp_path / "picture.png"
    file.write_bytes(make_reference._png(drawn))
    assert reference_pictures.same(file, drawn)
    few, many, wide = values.copy(), values.copy(), values + 5
    few[:2, :10] += 100
    many[:10, :20] += 100
    assert reference_pictures.same(file, reference_pictures.strip([values + 4, few]))
    assert not reference_pictures.same(file, reference_pictures.strip([values, many]))
    assert not reference_pictures.same(file, reference_pictures.strip([values, wide]))
    assert not reference_pictures.same(file, reference_pictures.strip([values]))
    assert not reference_pictures.same(tmp_path / "nothing.png", drawn)
    file.write_bytes(b"no picture")
    assert not reference_pictures.same(file, drawn)


def test_what_is_stale_is_named_and_mended(tmp_path: Path, made: dict[str, str | Image.Image]) -> None:
    for make in make_reference.stale(made, tmp_path).values():
        make()
    assert not make_reference.stale(made, tmp_path)
    pixels = np.asarray(made["reference/augment-random_crop.png"])
    with Image.open(tmp_path / "reference/augment-random_crop.png") as written:
        np.testing.assert_array_equal(np.asarray(written), pixels)
    (tmp_path / "reference" / "decays.md").write_text("old")
    (tmp_path / "reference" / "gone.md").write_text("of a kind that was")
    (tmp_path / "reference" / "decay-cosine.svg").unlink()
    Image.new("RGBA", pixels.shape[1::-1]).save(tmp_path / "reference/augment-random_crop.png")
    wrong = make_reference.stale(made, tmp_path)
    assert set(wrong) == {f"reference/{name}" for name in ("decays.md", "gone.md", "decay-cosine.svg", "augment-random_crop.png")}
    for mend in wrong.values():
        mend()
    assert not make_reference.stale(made, tmp_path)


def new(kind: str, function: Callable[..., Any], **facts: Any) -> Any:
    part(kind, **facts)(function)
    return registry.get(kind, function.__name__)


def test_a_new_part_has_an_example_or_is_told_what_it_needs() -> None:
    def plain(progress: Any, *, steepness: Annotated[float, Field(gt=0, description="How steep.")] = 2.0, flag: bool = True) -> float:
        "Fall."
        return 1.0

    def lengthy(progress: Any, *, at: make_reference.Duration, how: Annotated[bool, Field(description="How.")]) -> float:
        "Fall later."
        return 1.0

    def bare(progress: Any, *, power: Annotated[float, Field(gt=0, description="Power.")]) -> float:
        "Fall with a power."
        return 1.0

    def said(progress: Any, *, power: Annotated[float, Field(gt=0, description="Power.")]) -> float:
        """Fall with a power.

        Example: {name: said, power: 2.5}
        Source: nobody.
        """
        return 1.0

    def wrong(progress: Any, *, power: Annotated[float, Field(gt=0, description="Power.")] = 1.0) -> float:
        """Fall with a power.

        Example: {name: wrong, power: -2.5}
        """
        return 1.0

    def within(images: Any, draw: Any) -> Any:
        """Do a thing behind normalize.

        Example: {augment: [normalize, within], seed: 3}
        """
        return images

    assert reference_examples.example(new("decay", plain))[0] == "schedule: {lr: 0.1, decay: {name: plain, steepness: 2.0}}"
    found = new("decay", said)
    assert reference_examples.example(found)[0] == "schedule: {lr: 0.1, decay: {name: said, power: 2.5}}"
    assert list(make_reference.manual(found)) == ["Source: nobody.", ""]
    assert reference_examples.example(new("augment", within))[0] == "augment: [normalize, within]\nseed: 3"
    with pytest.raises(reference_examples.NoExample, match=r"decay bare needs an example.*`Example: \{name: bare, power: \.\.\.\}` into its docstring"):
        reference_examples.example(new("decay", bare))
    with pytest.raises(reference_examples.NoExample, match=r"decay wrong needs an example.* is refused: found -2.5; expected a number greater than 0"):
        reference_examples.example(new("decay", wrong))
    lengthy.__annotations__["at"] = registry.get("warmup", "gradual").options.model_fields["for"].rebuild_annotation()  # type: ignore[union-attr]  # there
    assert reference_examples.example(new("decay", lengthy))[0] == "schedule: {lr: 0.1, decay: {name: lengthy, at: 5ep, how: true}}"


def test_an_augmentation_that_shows_nothing_is_no_example() -> None:
    def seldom(images: Any, draw: Any, *, p: Annotated[float, Field(gt=0, le=1, description="Share.")] = 1e-9) -> Any:
        "Do next to nothing."
        return images

    with pytest.raises(reference_examples.NoExample, match=r"augment seldom needs an example.*because with its defaults nothing of it is seen"):
        make_reference._shown(new("augment", seldom), {})


def test_prose_is_shown_letter_by_letter() -> None:
    """By the reference implementation of CommonMark in Python: what stands in the page is what stood in the docstring."""
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    texts = [
        "a * b * c, x_1 and _y_ and __z__, f(x) < g(x) <b>, [B, C] and ~no~", "1. is no list", "- nor is this", "# or that", "2 > 1 = 0", "a|b $x$ \\n", "[B](x) R&amp; ![n]",
        "+ 3", "> 2", "=== 4", "`x * y` and a * b", *(p.summary for k in KINDS for n in registry.names(k) if (p := registry.get(k, n))),
    ]  # fmt: skip
    for text in texts:
        read = io.StringIO()
        parser = HTMLParser()
        parser.handle_data = read.write  # type: ignore[assignment]  # what it is for
        html = MarkdownIt().render(make_reference.escaped(text))
        parser.feed(html)
        assert read.getvalue().strip() == text.replace("`", "") and html.startswith("<p>"), json.dumps(html)
