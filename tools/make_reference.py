"""Write docs/reference from the registry: a page a kind, with a curve for each schedule and pictures for each augmentation.

    python tools/make_reference.py            write what is stale
    python tools/make_reference.py --check    name what is stale, and end with 1 if anything is

Pages and curves are compared letter by letter. Pictures are drawn anew and their pixels compared with a little room, because
another version of torch may round otherwise; one that is within it is left as it is. Of docs/README.md the list of pages is written.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from reference_examples import NoExample, example, place, wanted, without_example
from reference_pictures import changes, curve, pictures, same

import trainrun.parts  # noqa: F401 - fills the registry
from trainrun.recipe.durations import Duration
from trainrun.recipe.kinds import KINDS
from trainrun.recipe.registry import Part, registry
from trainrun.report.catalogue import default, options, takes, told_together

FOLDER = Path(__file__).parents[1] / "docs"
HEAD = "<!-- Written by `make docs` from the signatures and docstrings under trainrun/parts. What is changed here is lost. -->\n"
PAGES = {"data": "data", "warmup": "warm-ups", "loss": "losses", "augment": "augmentations", "mining": "mining"}  # of other kinds an s is the plural
_PAGES, _END = "<!-- pages -->\n", "<!-- end of pages -->\n"
_SHORT = Duration(20, "ep")  # shows a warm-up larger
_PIECES = re.compile(r"(`[^`]+`)")
_APART = re.compile(r"(?:^|(?<=[.;)]) )(?=(?:Sources?|Errors?(?: \(UserError\))?|Suggested): )", re.MULTILINE)


def page_of(kind: str) -> str:
    """The file name of a kind's page, without its ending."""
    return PAGES.get(kind, f"{kind}s")


def reference(index: str) -> dict[str, str | Image.Image]:
    """Every file of the reference by its path below docs, and the index with its list of pages renewed."""
    made: dict[str, str | Image.Image] = {}
    for kind in KINDS:
        made[f"reference/{page_of(kind)}.md"] = "".join(f"{line}\n" for line in _page(kind, made))
    pages = [f"| [{page_of(kind).capitalize()}](reference/{page_of(kind)}.md) | `{place(kind)}` |\n" for kind in KINDS]
    table = "".join(["| page | in a recipe |\n|---|---|\n", *pages])
    before, _, rest = index.partition(_PAGES)
    made["README.md"] = before + _PAGES + table + _END + rest.partition(_END)[2]
    return made


def _page(kind: str, made: dict[str, str | Image.Image]) -> Iterator[str]:
    """The lines of a kind's page; what it shows is added to `made`."""
    told = told_together(kind)
    common = list(KINDS[kind].common.model_fields)
    yield from (HEAD, f"# {page_of(kind).capitalize()}", "")
    yield f"{escaped(KINDS[kind].summary.capitalize())}. In a recipe: `{place(kind)}`. On the command line: `trainrun list {kind}`."
    yield "Each example is a line of a recipe, and every option in it but the required ones can be left out."
    yield ""
    heads = [_head(names) for names, _, _ in told]
    yield " · ".join(f"[{escaped(head)}](#{_anchor(head)})" for head in heads)
    for head, (names, summary, found) in zip(heads, told, strict=True):
        part = registry.get(kind, names[0])
        assert part is not None
        yield from ("", f"## {escaped(head)}", "")
        yield escaped(summary)
        yield ""
        yield from manual(part)
        if len(names) > 1:
            yield from ("Names: " + ", ".join(f"`{name}`" for name in names) + ".", "")
        if shown := _shown(part, made):
            yield from (shown, "")
        yield from _table({name: option for name, option in found.items() if name not in common})
        yield from ("```yaml", example(part)[0], "```")
    if common:
        yield from ("", "## What all take", "", f"Each of these takes, besides its own options, the following under `{place(kind)}`.", "")
        part = registry.get(kind, told[0][0][0])
        assert part is not None
        yield from list(_table({name: option for name, option in options(part).items() if name in common}))[:-1]


def _head(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} others"


def _anchor(head: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


def _shown(part: Part, made: dict[str, str | Image.Image]) -> str:
    """The line that shows a part at work, where it can be seen."""
    recipe = example(part)[1].recipe
    name = re.sub(r"\W+", "_", part.name)
    if part.kind in ("warmup", "decay"):
        made[f"reference/{part.kind}-{name}.svg"] = curve(recipe, recipe.epochs if part.kind == "decay" else _SHORT)
        return f"![The learning rate with {part.name}]({part.kind}-{name}.svg)"
    if part.kind == "augment" and (drawn := pictures(recipe)):
        if not changes(drawn):
            raise wanted(part, ", because with its defaults nothing of it is seen in five epochs of a picture")
        made[f"reference/{part.kind}-{name}.png"] = drawn
        return f'<img src="{part.kind}-{name}.png" alt="A picture as it is, and with {part.name} in five epochs" width="{min(drawn.width, 640)}">'
    return ""


def manual(part: Part) -> Iterator[str]:
    """The docstring after its first line, as Markdown: paragraphs on one line each, what is indented as it stands."""
    body = without_example(part.manual).replace("{name}", "model of that name").partition("\n")[2]
    for block in re.split(r"\n\s*\n", body.strip("\n")):
        lines = block.split("\n")
        if not block.strip():
            continue
        if all(line.startswith("    ") for line in lines):
            yield from ("```text", *(line[4:] for line in lines), "```", "")
        elif all(line.startswith(("- ", "  ")) for line in lines) and lines[0].startswith("- "):
            yield from (*(line[:2] + escaped(line[2:]) for line in lines), "")
        else:
            # Sources and errors are found sooner where they begin a paragraph.
            for paragraph in _APART.split(block):
                if words := " ".join(paragraph.split()):
                    yield from (escaped(words), "")


def escaped(text: str) -> str:
    """Prose of a docstring as Markdown that shows it letter by letter; what stands in backticks stays code."""
    pieces = _PIECES.split(text)
    shown = "".join(piece if n % 2 else _plain(piece) for n, piece in enumerate(pieces))
    return re.sub(r"^(\d*)([-+#=>.)])", r"\1\\\2", shown)  # neither a list nor a heading


def _plain(text: str) -> str:
    text = re.sub(r"([\\*$~|]|(?<=\])\()", r"\\\1", text.replace("&", "&amp;")).replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no emphasis


def _table(found: dict[str, dict[str, object]]) -> Iterator[str]:
    if not found:
        return
    yield from ("| option | takes | default | meaning |", "|---|---|---|---|")
    for name, option in found.items():
        fallback = "required" if option.get("required") else f"`{default(option).removeprefix('default ')}`"
        yield f"| `{name}` | {escaped(takes(option))} | {fallback} | {escaped(str(option['description']))} |"
    yield ""


def stale(made: dict[str, str | Image.Image], folder: Path) -> dict[str, Callable[[], None]]:
    """The files that differ from what they should be, those that should not be there too, each with what mends it."""
    wrong: dict[str, Callable[[], None]] = {}
    for name, content in made.items():
        file = folder / name
        if isinstance(content, str):
            if not file.is_file() or file.read_bytes() != content.encode():
                wrong[name] = lambda file=file, content=content: _write(file, content.encode())
        elif not same(file, content):
            wrong[name] = lambda file=file, content=content: _write(file, _png(content))
    for file in (folder / "reference").glob("*"):
        if (name := f"reference/{file.name}") not in made:
            wrong[name] = file.unlink
    return wrong


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def main(words: list[str], folder: Path = FOLDER) -> int:
    """Write or check; returns the exit code."""
    if words not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        wrong = stale(reference((folder / "README.md").read_text(encoding="utf-8")), folder)
    except NoExample as error:
        print(f"make_reference: {error}", file=sys.stderr)
        return 1
    for name, mend in sorted(wrong.items()):
        print(f"{folder.name}/{name} {'is stale; make docs writes it anew' if words else 'written'}")
        if not words:
            mend()
    return 1 if words and wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
