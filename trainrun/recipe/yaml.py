"""YAML text to plain data with the line and column of every key and value, and back.

Scalars are those of YAML 1.2's core schema, so `1e-3` is a number and `no` is a word. The text may come from a stranger:
size, nesting and what aliases expand to are bounded before anything is built, and no tag makes an object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import yaml

from trainrun.errors import Mistake, RecipeError

Keys = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 50
MAX_DIGITS = 100
MAX_KEY = 200

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = {".nan", ".NaN", ".NAN"}
_CORE = "tag:yaml.org,2002:"
_OF_TAG: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}
_SURROGATE = re.compile("[\ud800-\udfff]")
_PROBLEMS = {
    "found character '\\t' that cannot start any token": "a tab where YAML wants spaces",
    "mapping values are not allowed here": "a second ': ' in one value, or a line indented differently from its neighbours",
    "could not find expected ':'": "a line that is no 'key: value'",
}


class Mark(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """What a text says, and where it says each key and each value."""

    data: Any
    keys: dict[Keys, Mark] = field(default_factory=dict)
    values: dict[Keys, Mark] = field(default_factory=dict)


@dataclass(frozen=True)
class _Node:
    """A value still joined to its place; `size` and `depth` count what its aliases expand to."""

    value: Any  # a scalar, {key: (mark, node)} or [node]
    mark: Mark
    size: int = 1
    depth: int = 1
    merges: bool = False  # the plain key <<


class _Refusal(Exception):
    """A fault after which the rest of the text says nothing reliable."""

    def __init__(self, message: str, mark: Mark | None) -> None:
        self.message, self.mark = message, mark


def read(text: bytes | str, file: str) -> Document:
    """A recipe's text, which must be a mapping; raises RecipeError with the mistakes, each at its line and column."""
    mistakes: list[Mistake] = []
    try:
        root = _compose(_decoded(text), file, mistakes)
        if not isinstance(root.value, dict):
            found = "an empty file" if root.value is None else _word(root.value)
            raise _Refusal(f"found {found}; expected 'key: value' lines", root.mark)
    except _Refusal as refusal:
        line, column = refusal.mark or (None, None)
        raise RecipeError([*mistakes, Mistake(file, line, column, "", refusal.message)]) from None
    if mistakes:
        raise RecipeError(mistakes)
    document = Document({})
    return replace(document, data=_plain(root, (), document))


def read_value(text: str) -> Any:
    """One value as an override gives it, by the same rules; raises ValueError that says what is wrong with it."""
    mistakes: list[Mistake] = []
    try:
        root = _compose(_decoded(text), "", mistakes)
    except _Refusal as refusal:
        raise ValueError(refusal.message) from None
    if mistakes:
        raise ValueError("; ".join(m.message for m in mistakes))
    return _plain(root, (), Document(None))


def resolve(text: str) -> bool | int | float | str | None:
    """What a plain scalar means in YAML 1.2; raises ValueError for an integer of absurd length."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"an integer of {len(text)} digits; at most {MAX_DIGITS} are read")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INFINITE.fullmatch(text):
        return -math.inf if match[1] == "-" else math.inf
    return math.nan if text in _NAN else text


def dotted(keys: Keys) -> str:
    """The path of a value as people write it: schedule.lr, augment.0.padding."""
    return ".".join(map(str, keys))


def _word(value: Any) -> str:
    return {dict: "a mapping", list: "a list"}.get(type(value), repr(value)[:60] if isinstance(value, (str, int, float)) else "null")


def _decoded(text: bytes | str) -> str:
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise _Refusal("a character that is half of a surrogate pair", _mark_at(error.object, error.start)) from None
    if len(raw) > MAX_BYTES:
        raise _Refusal(f"{len(raw):,} bytes or more; a recipe has at most {MAX_BYTES:,}", None)
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        raise _Refusal(f"byte 0x{raw[error.start]:02x} is not UTF-8", _mark_at(before, len(before))) from None


def _mark_at(text: str, index: int) -> Mark:
    before = text[:index]
    return Mark(before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1)


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


def _events(text: str) -> Iterator[yaml.Event]:
    """The parser's events, bounded in number and nesting; the parser is iterative, so depth cannot exhaust the stack."""
    depth = nodes = documents = 0
    try:
        loader = yaml.SafeLoader(text)  # the pure Python one: the C parser recurses
    except yaml.reader.ReaderError as error:
        raise _Refusal(f"the character U+{error.character:04X} is not allowed in YAML", _mark_at(text, error.position)) from None
    try:
        while loader.check_event():
            event = loader.get_event()
            documents += isinstance(event, yaml.DocumentStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            nodes += isinstance(event, yaml.NodeEvent)
            if documents > 1:
                raise _Refusal("a second document; a recipe is one", _mark(event.start_mark))
            if depth > MAX_DEPTH:
                raise _Refusal(f"nested more than {MAX_DEPTH} deep", _mark(event.start_mark))
            if nodes > MAX_NODES:
                raise _Refusal(f"more than {MAX_NODES:,} values", _mark(event.start_mark))
            yield event
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem)
        mark = error.problem_mark or error.context_mark
        raise _Refusal(f"not YAML: {_PROBLEMS.get(problem, problem)}", _mark(mark) if mark else None) from None
    except (ValueError, OverflowError, IndexError) as error:  # PyYAML on an escape or a directive that holds no such number
        problem = "an escape for a character that does not exist" if "chr()" in str(error) else str(error)[:80]
        raise _Refusal(f"not YAML: {problem}", _mark(loader.get_mark())) from None
    finally:
        loader.dispose()


def _compose(text: str, file: str, mistakes: list[Mistake]) -> _Node:
    content = [e for e in _events(text) if not isinstance(e, (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent))]
    if not content:
        return _Node(None, Mark(1, 1))
    return _Composer(iter(content[1:]), file, mistakes).node()


class _Composer:
    """Builds nodes from events that are known to nest at most MAX_DEPTH deep; notes what can be read past."""

    def __init__(self, events: Iterator[yaml.Event], file: str, mistakes: list[Mistake]) -> None:
        self.events = events
        self.file = file
        self.mistakes = mistakes
        self.path: list[str | int] = []
        self.anchors: dict[str, _Node | None] = {}  # None while its node is still being read

    def note(self, message: str, mark: Mark) -> None:
        self.mistakes.append(Mistake(self.file, *mark, dotted(tuple(self.path)), message))

    def node(self) -> _Node:
        return self.node_of(next(self.events))

    def node_of(self, event: Any) -> _Node:
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event.anchor, mark)
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self.scalar(event, mark)
        else:
            kind = "seq" if isinstance(event, yaml.SequenceStartEvent) else "map"
            if event.tag not in (None, _CORE + kind):
                self.note(f"the tag {self.tag(event.tag)} is not allowed", mark)
            node = self.sequence(mark) if kind == "seq" else self.mapping(mark)
        if node.size > MAX_NODES:
            raise _Refusal(f"aliases expand to more than {MAX_NODES:,} values", mark)
        if node.depth > MAX_DEPTH:
            raise _Refusal(f"aliases expand to more than {MAX_DEPTH} levels", mark)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, name: str, mark: Mark) -> _Node:
        if name not in self.anchors:
            raise _Refusal(f"*{name} names no anchor &{name} before it", mark)
        node = self.anchors[name]
        if node is None:
            raise _Refusal(f"*{name} stands inside the value that &{name} names", mark)
        return replace(node, mark=mark, merges=False)

    @staticmethod
    def tag(tag: str) -> str:
        return f"!!{tag.removeprefix(_CORE)}" if tag.startswith(_CORE) else tag if tag.startswith("!") else f"!<{tag}>"

    def scalar(self, event: Any, mark: Mark) -> _Node:
        plain = event.implicit[0] and event.style is None
        try:
            value = resolve(event.value) if plain else event.value
            if event.tag not in (None, _CORE + "str"):
                name = event.tag.removeprefix(_CORE)
                value = resolve(event.value)
                if not event.tag.startswith(_CORE) or name not in _OF_TAG:
                    raise ValueError(f"the tag {self.tag(event.tag)} is not allowed")
                if not isinstance(value, _OF_TAG[name]) or (name != "bool" and isinstance(value, bool)):
                    raise ValueError(f"{event.value!r} is no !!{name}")
                value = float(value) if name == "float" else value  # type: ignore[arg-type]  # the line above says it is a number
        except ValueError as error:
            self.note(str(error), mark)
            value = ""
        if isinstance(value, str) and _SURROGATE.search(value):
            self.note("half of a surrogate pair, which no text file can hold", mark)
        return _Node(value, mark, merges=plain and event.value == "<<")

    def sequence(self, mark: Mark) -> _Node:
        items: list[_Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            self.path.append(len(items))
            items.append(self.node_of(event))
            self.path.pop()
        return self.measured(items, mark, items)

    def mapping(self, mark: Mark) -> _Node:
        items: dict[str, tuple[Mark, _Node]] = {}
        merges: list[_Node] = []
        parts: list[_Node] = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node_of(event)
            named = isinstance(key.value, str)
            self.path.append(key.value if named else "?")
            value = self.node()
            parts += [key, value]
            if key.merges and not merges:
                merges = value.value if isinstance(value.value, list) else [value]
                if not all(isinstance(each.value, dict) for each in merges):
                    self.note("<< merges a mapping or a list of mappings", value.mark)
                    merges = []
            elif key.merges:
                self.note("a second << in one mapping; give one a list: <<: [*a, *b]", key.mark)
            elif not named:
                self.path.pop()
                self.note(f"found {_word(key.value)} as a key; expected a name", key.mark)
                self.path.append("?")
            elif len(key.value) > MAX_KEY:
                self.path[-1] = "?"
                self.note(f"a key of {len(key.value)} characters; at most {MAX_KEY} are read", key.mark)
            elif key.value in items:
                self.note(f"written twice, on lines {items[key.value][0].line} and {key.mark.line}", key.mark)
            else:
                items[key.value] = (key.mark, value)
            self.path.pop()
        for each in merges:
            for name, item in each.value.items():
                items.setdefault(name, item)
        return self.measured(items, mark, parts)

    @staticmethod
    def measured(value: Any, mark: Mark, parts: list[_Node]) -> _Node:
        return _Node(value, mark, 1 + sum(p.size for p in parts), 1 + max((p.depth for p in parts), default=0))


def _plain(node: _Node, at: Keys, document: Document) -> Any:
    document.values[at] = node.mark
    if isinstance(node.value, dict):
        for name, (mark, _) in node.value.items():
            document.keys[(*at, name)] = mark
        return {name: _plain(item, (*at, name), document) for name, (_, item) in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(item, (*at, i), document) for i, item in enumerate(node.value)]
    return node.value


_BARE = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_/.%+-]*( [A-Za-z0-9_/.%+-]+)*")
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def escaped(text: str) -> str:
    """Text with everything that does not print, quotes and backslashes escaped as YAML and Python write them."""
    return "".join(_ESCAPED.get(c) or (c if c.isprintable() else _code(ord(c))) for c in text)


def _code(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def scalar(value: bool | float | str | None) -> str:
    """A scalar as text that `resolve` reads back as the same value of the same type."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return ".nan" if math.isnan(value) else _dot(repr(value).replace("inf", ".inf"))
        case int():
            return str(value)
        case _:
            return value if _BARE.fullmatch(value) and _is_text(value) else f'"{escaped(value)}"'


def _dot(text: str) -> str:
    return text if "." in text else text.replace("e", ".0e")  # YAML 1.1 readers take 1e-05 for a word


def _is_text(value: str) -> bool:
    """Whether a plain scalar is a string to our reader, and to those of YAML 1.1, which take `off` or 2026-01-01 for more."""
    old = yaml.SafeLoader.yaml_implicit_resolvers.get(value[0], [])
    try:
        return isinstance(resolve(value), str) and not any(pattern.match(value) for _, pattern in old)
    except ValueError:
        return False


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def lines(data: Mapping[str, Any], at: Keys = ()) -> Iterator[tuple[str, Keys | None]]:
    """A mapping in block style, line by line, each with the path of the value it holds whole (None where it only opens one)."""
    for key, value in data.items():
        here = (*at, key)
        if isinstance(value, Mapping) and value:
            yield f"{scalar(key)}:", None
            yield from ((f"  {text}", place) for text, place in lines(value, here))
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) and item for item in value):
            yield f"{scalar(key)}:", None
            for i, item in enumerate(value):
                inner = lines(item, (*here, i)) if isinstance(item, Mapping) and item else [(flow(item), (*here, i))]
                yield from ((f"  {'  ' if n else '- '}{text}", place) for n, (text, place) in enumerate(inner))
        else:
            yield f"{scalar(key)}: {flow(value)}", here


def write(data: Mapping[str, Any]) -> str:
    """A mapping as YAML that `read` reads back identically; raises nothing that `read` could have produced."""
    return "".join(f"{text}\n" for text, _ in lines(data)) or "{}\n"
