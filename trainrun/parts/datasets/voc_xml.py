"""One annotation file of the Pascal VOC layout, read without its document type, so that nothing in it can expand or refer elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from trainrun.parts.datasets.pictures import BadPicture, read_file

_MOST_BYTES = 32 << 20
_DEEPEST = 32  # elements within elements; a file of the layout has 5
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class BadAnnotation(Exception):
    """An annotation file that is not what it should be; the text is the reason."""


@dataclass
class Entry:
    """The text of an `object` element's parts, by name: name, difficult and the four sides; what is not there is missing."""

    texts: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name, without white space around it."""
        return " ".join(self.texts.get("name", "").split())

    @property
    def sides(self) -> tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax as the file has them."""
        x0, y0, x1, y1 = (self._number(side) for side in _SIDES)
        return x0, y0, x1, y1

    @property
    def difficult(self) -> bool:
        """Whether it is marked so; without a mark it is not."""
        return bool(self._number("difficult")) if self.texts.get("difficult", "").strip() else False

    def _number(self, name: str) -> float:
        if name not in self.texts:
            raise BadAnnotation(f"has no {name}")
        text = self.texts[name].strip()
        try:
            return float(text)
        except ValueError:
            shown = text if len(text) <= 30 else text[:27] + "..."
            raise BadAnnotation(f"{name}: found {shown!r}, expected a number") from None


@dataclass
class Annotation:
    """What a file says: the picture's file name, its width and height as text, and its objects in order."""

    size: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    objects: list[Entry] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width; None where the file does not say, or says 0."""
        if not self.size.get("height", "").strip() or not self.size.get("width", "").strip():
            return None
        sides = []
        for name in ("height", "width"):
            try:
                sides.append(int(self.size[name]))
            except ValueError:
                raise BadAnnotation(f"size/{name}: found {self.size[name].strip()[:30]!r}, expected a whole number") from None
        if min(sides) < 0 or max(sides) > 1 << 20:
            raise BadAnnotation(f"a size of {sides[1]} x {sides[0]} pixels")
        return (sides[0], sides[1]) if min(sides) else None


def read_annotation(path: str) -> Annotation:
    """Read a file; raises BadAnnotation, or OSError where the system refuses."""
    try:
        data = read_file(path, _MOST_BYTES)
    except BadPicture as error:
        raise BadAnnotation(str(error)) from None
    return parse(data)


def parse(data: bytes) -> Annotation:
    """An annotation from the bytes of its file. Elements that are not looked at, the `part`s of a person among them, are passed over.

    A document type is refused, so there are no entities but XML's own five, and none that is fetched: neither the expansion of a bomb
    nor a file or an address that it names. Everything is given to the parser at once, so a long piece is not scanned again and again.
    """
    found = Annotation()
    path: list[str] = []
    text: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(path) == _DEEPEST:
            raise BadAnnotation(f"elements stand more than {_DEEPEST} deep in one another")
        if not path and name != "annotation":
            raise BadAnnotation(f"its outermost element is {name[:40]}, expected annotation")
        path.append(name)
        text.clear()
        if path == ["annotation", "object"]:
            found.objects.append(Entry())

    def end(name: str) -> None:
        match path:
            case ["annotation", "filename"]:
                found.filename = "".join(text)
            case ["annotation", "size", "width" | "height"]:
                found.size[name] = "".join(text)
            case ["annotation", "object", "name" | "difficult"] | ["annotation", "object", "bndbox", "xmin" | "ymin" | "xmax" | "ymax"]:
                if name in found.objects[-1].texts:
                    raise BadAnnotation(f"object {len(found.objects)} has two of {name}")
                found.objects[-1].texts[name] = "".join(text)
        path.pop()
        text.clear()

    def refuse(*_: object) -> None:
        raise BadAnnotation("it has a document type (<!DOCTYPE>), which is not read")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise BadAnnotation(f"not XML: {expat.ErrorString(error.code)} in line {error.lineno}, column {error.offset + 1}") from None
    except (ValueError, LookupError, TypeError) as error:  # of an encoding that is none
        raise BadAnnotation(f"not XML: {error}") from None
    return found
