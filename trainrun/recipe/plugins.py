"""Parts of a person's own: Python files or modules that a recipe lists and the command line allows."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainrun.errors import Mistake
from trainrun.recipe import words
from trainrun.recipe.layers import Layer
from trainrun.recipe.registry import Registry

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_plugins(layer: Layer, allowed: bool, registry: Registry) -> list[Mistake]:
    """Import the plugins that the layer lists, so that they register their parts; their files become absolute paths in it.

    Returns a mistake for each that is not allowed, not found or does not import; what such a one registered is taken back.
    """
    listed = layer.data.get("plugins")
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        return []  # validation has the words for it
    mistakes: list[Mistake] = []
    resolved: list[Any] = list(listed)
    for n, entry in enumerate(listed):
        at = ("plugins", n)
        source = layer.source(at)
        folder = Path(source.file).parent if source.kind in ("file", "extended") else Path()
        path = (folder / entry).absolute() if entry.endswith(".py") or "/" in entry else None
        if path:
            resolved[n] = str(path.resolve())
        if not allowed:
            mistakes.append(layer.at_value(at, f"{entry} runs code of its own; pass --allow-plugins if you trust it"))
        elif path and not path.is_file():
            mistakes.append(layer.at_value(at, f"there is no file {path}"))
        elif not path and not _MODULE.fullmatch(entry):
            mistakes.append(layer.at_value(at, f"found {words.found(entry)}; expected a file as my_parts.py or a module as my.parts"))
        else:
            before = registry.snapshot()
            try:
                _load(resolved[n], path is not None)
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                registry.restore(before)
                mistakes.append(layer.at_value(at, f"does not import: {_reason(error, str(path) if path else None)}"))
    layer.data["plugins"] = resolved
    return mistakes


def _load(entry: str, is_file: bool) -> None:
    if not is_file:
        importlib.import_module(entry)
        return
    name = f"trainrun_plugin_{hashlib.sha256(entry.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, entry)
    if spec is None or spec.loader is None:
        raise ImportError(f"{entry} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a part's annotations are evaluated in it later
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def digest(plugins: Sequence[str]) -> str | None:
    """SHA-256 of the source of imported plugins (absolute paths or module names) in their order; None where there are none."""
    if not plugins:
        return None
    files = [entry if entry.endswith(".py") or "/" in entry else sys.modules[entry].__file__ for entry in plugins]
    sums = [hashlib.sha256(Path(file).read_bytes() if file else b"").digest() for file in files]  # a namespace package has no file
    return hashlib.sha256(b"".join(sums)).hexdigest()


def _reason(error: BaseException, path: str | None) -> str:
    """The exception's type and text, and the last line of the plugin's own that led to it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
    own = [f for f in frames if path and Path(f.filename).resolve() == Path(path).resolve()] or frames
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text
