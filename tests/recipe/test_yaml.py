"""The YAML reader against the YAML 1.2 specification, and against texts made to hurt it."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml as pyyaml

from trainrun.errors import RecipeError
from trainrun.recipe import yaml


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        yaml.read(text, "f")
    return [str(m) for m in caught.value.mistakes]


# YAML 1.2.2, section 10.3.2, and the places where YAML 1.1 readers differ
SCALARS: list[tuple[str, Any]] = [
    ("1e-3", 0.001), ("1e3", 1000.0), ("1.5E+2", 150.0), (".5", 0.5), ("5.", 5.0), ("-0.0", -0.0), (".inf", math.inf), ("-.INF", -math.inf),
    ("010", 10), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("+7", 7), ("0b11", "0b11"), ("1_000", "1_000"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"),
    ("no", "no"), ("on", "on"), ("off", "off"), ("yes", "yes"), ("y", "y"), ("true", True), ("False", False), ("tRUE", "tRUE"),
    ("null", None), ("~", None), ("Null", None), ("nULL", "nULL"), ("'1'", "1"), ('"true"', "true"), ("1.2.3", "1.2.3"), ("-", "-"), ("1e", "1e"), ("5%", "5%"),
    ("!!str 1", "1"), ("!!int 3", 3), ("!!float 3", 3.0), ("!!bool true", True), ("!!null null", None), ("!!int '3'", 3),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = yaml.read(f"key: {text}\n" if text != "-" else "key: '-'\n", "f").data["key"]
    assert (type(read), repr(read)) == (type(value), repr(value))


def test_nan_is_read() -> None:
    assert math.isnan(yaml.read("a: .nan\n", "f").data["a"])


def test_every_key_and_value_has_its_place() -> None:
    document = yaml.read("# head\nschedule:\n  lr: 0.1\naugment: [flip, {name: crop, padding: 4}]\n", "f")
    assert document.data == {"schedule": {"lr": 0.1}, "augment": ["flip", {"name": "crop", "padding": 4}]}
    assert document.keys == {
        ("schedule",): (2, 1), ("schedule", "lr"): (3, 3), ("augment",): (4, 1), ("augment", 1, "name"): (4, 18), ("augment", 1, "padding"): (4, 30),
    }  # fmt: skip
    assert document.values == {
        (): (2, 1), ("schedule",): (3, 3), ("schedule", "lr"): (3, 7), ("augment",): (4, 10), ("augment", 0): (4, 11),
        ("augment", 1): (4, 17), ("augment", 1, "name"): (4, 24), ("augment", 1, "padding"): (4, 39),
    }  # fmt: skip


def test_columns_count_characters_and_skip_a_byte_order_mark() -> None:
    assert yaml.read("\ufeff{ä: 1, b: 2}".encode(), "f").keys == {("ä",): (1, 2), ("b",): (1, 8)}


def test_aliases_and_merges() -> None:
    document = yaml.read("a: &a {p: 1, q: 2}\nb: &b {q: 3, r: 4}\nc: *a\nd:\n  <<: [*a, *b]\n  p: 9\ne: {<<: *b}\n", "f")
    assert document.data["c"] == {"p": 1, "q": 2}
    assert document.data["d"] == {"p": 9, "q": 2, "r": 4}  # what is written wins, then the earlier of the merged
    assert document.data["e"] == {"q": 3, "r": 4}
    assert document.values[("c",)] == (3, 4)  # where the alias stands
    assert document.values[("d", "r")] == (2, 17)  # where the value stands


def test_a_quoted_merge_key_is_a_plain_key() -> None:
    assert yaml.read("a: {'<<': 1}\n", "f").data == {"a": {"<<": 1}}


def test_all_readable_faults_are_listed_at_once() -> None:
    assert mistakes("a: 1\na: 2\nb: !x 1\n3: c\nd: {e: 1, e: 2}\n") == [
        "f:2:1: a: written twice, on lines 1 and 2",
        "f:3:4: b: the tag !x is not allowed",
        "f:4:1: found 3 as a key; expected a name",
        "f:5:11: d.e: written twice, on lines 5 and 5",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: \xe9\n", "f:1:4: byte 0xe9 is not UTF-8"),
        ("a: é\nb: \0".encode(), "f:2:4: the character U+0000 is not allowed in YAML"),
        (b"a: \x1b[31m", "f:1:4: the character U+001B is not allowed in YAML"),
        (b"\xff\xfea\x00:\x00", "f:1:1: byte 0xff is not UTF-8"),
        (b"", "f:1:1: found an empty file; expected 'key: value' lines"),
        (b"---\n", "f:2:1: found an empty file; expected 'key: value' lines"),
        (b"null\n", "f:1:1: found an empty file; expected 'key: value' lines"),
        (b"a: 1\n--- {}\n", "f:2:1: a second document; a recipe is one"),
        (b"a: " + b"7" * 5001, "f:1:4: a: an integer of 5001 digits; at most 100 are read"),
        (b"a: " + b"[" * 60_000, "f:1:53: nested more than 50 deep"),  # the mapping is the first level
        (b"#" * (1 << 20) + b"\n", "f: 1,048,577 bytes or more; a recipe has at most 1,048,576"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_whole(text: bytes, expected: str) -> None:
    assert mistakes(text) == [expected]


def test_nesting_up_to_the_limit_is_read() -> None:
    value = yaml.read("a: " + "[" * 48 + "1" + "]" * 48, "f").data["a"]
    for _ in range(48):
        (value,) = value
    assert value == 1


BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)),
    "merges": "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 40)),
    "chain": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 40_000)),
    "brackets": "a: " + "[" * 1_000_000,
    "braces": "a: " + "{a: " * 250_000,
    "dashes": "- " * 500_000,
    "questions": "? " * 500_000,
    "many": "a: [" + "1," * 500_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "long word then a fault": "a: " + "x" * 1_000_000 + "\n b: c: d",
    "words then a fault": "a: " + "x " * 500_000 + ": :",
    "quoted lines": 'a: "' + "x\\\n" * 300_000,
    "empty lines": "\n" * 1_000_000,
    "spaces": " " * 1_000_000 + "a: {",
    "comment": "#" * 1_000_000,
    "directives": "%F x\n" * 200_000,
    "block": "a: |\n" + " x\n" * 330_000 + "b: c: d",
    "anchor": "a: &" + "a" * 1_000_000 + " [",
    "digits": "a: " + "1" * 1_000_000,
    "hex": "a: 0x" + "f" * 1_000_000,
    "digits in a directive": "%YAML 1." + "1" * 1_000_000 + "\n---\na: 1\n",
    "escapes": 'a: "' + "\\U00110000" * 100_000 + '"',
    "carriage returns": "a: b\r" * 200_000,
    "open quotes": "'" * 1_000_000,
    "long key": "? " + "k" * 1_000_000 + "\n: 1",
    "tags": "a: " + "!!x " * 250_000,
}
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_000_000_000, 1_000_000_000))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
from trainrun.errors import RecipeError
from trainrun.recipe import yaml
try:
    yaml.read(sys.stdin.buffer.read(), "f")
except RecipeError as error:
    print(len(error.mistakes), len(str(error)))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_10_seconds_and_1_gigabyte(name: str) -> None:
    text = BOMBS[name].encode()
    assert len(text) <= yaml.MAX_BYTES
    run = subprocess.run([sys.executable, "-c", LIMITED], input=text, capture_output=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    count, length = map(int, run.stdout.split())
    assert count == 1
    assert length < 500  # nobody wants a megabyte of message


def test_random_texts_raise_nothing_else() -> None:
    dice = random.Random(7)
    pieces = ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "!!str ", "!x ", "'", '"', "|", ">", "#", "%", "---", "...", "? ", "<<: ", "\\U", "1", "~", "\t", "é"]  # fmt: skip
    read = 0
    start = time.process_time()
    while time.process_time() - start < 1:
        text = "".join(dice.choice(pieces) for _ in range(dice.randrange(1, 25)))
        try:
            yaml.read(text, "f")
            read += 1
        except RecipeError as error:
            assert error.mistakes
    assert read > 10


def random_value(dice: random.Random, depth: int = 0) -> Any:
    words = ["1e3", "null", "true", "0x1", "", "~", "a: b", "- x", "#", "x #y", "é😀", "a\nb", " lead", "trail ", "off", "2026-01-01", "1:30", "'", '"', "\\", "\x85", "\u2028", "\ufeff", "\x7f", "\0", "[x]", "*a", "&a", "!t", "%", "@", "`", "<<", "=", "...", "---", "5%", "10ep", "a, b", "{", "\t", ".5", "1_0"]  # fmt: skip
    numbers = [0, -1, 10**30, 0.1, 1e-7, 1e22, -0.0, 5e-324, 1.7976931348623157e308, math.inf, 3.0, True, False, None, dice.random()]
    match dice.randrange(5 if depth < 3 else 3):
        case 0:
            return dice.choice(words)
        case 1:
            return "".join(
                chr(dice.choice([dice.randrange(32, 127), dice.randrange(0xD7FF), dice.randrange(0x10000, 0x10FFFF)])) for _ in range(5)
            )
        case 2:
            return dice.choice(numbers)
        case 3:
            return [random_value(dice, depth + 1) for _ in range(dice.randrange(4))]
        case _:
            return {str(random_value(dice, 9)): random_value(dice, depth + 1) for _ in range(dice.randrange(4))}


def test_what_is_written_is_read_back_identically() -> None:
    dice = random.Random(11)
    for _ in range(600):
        data = {f"k{n}": random_value(dice) for n in range(4)}
        assert repr(yaml.read(yaml.write(data), "f").data) == repr(data)  # repr tells 1 from 1.0 and from True


@pytest.mark.parametrize(
    "value",
    ["1e3", "null", "true", "0x1", "off", "no", "2026-01-01", "1:30", "1_000", "", "=", 1e-5, 1e22, 0.1, 3, None, True, "plain words"],
)
def test_older_readers_agree_about_what_is_written(value: Any) -> None:
    read = pyyaml.safe_load(yaml.write({"a": value}))["a"]
    assert (type(read), read) == (type(value), value)


def test_overrides_read_one_value() -> None:
    assert yaml.read_value("{lr: 1e-3, decay: [no]}") == {"lr": 0.001, "decay": ["no"]}
    with pytest.raises(ValueError, match="the tag !!python/name:os.system is not allowed"):
        yaml.read_value("!!python/name:os.system x")
    with pytest.raises(ValueError, match="written twice"):
        yaml.read_value("{a: 1, a: 2}")
