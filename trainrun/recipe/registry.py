"""Names to parts: a part is one decorated function, its signature is the schema, its docstring is the manual.

Positional parameters are what the run supplies (a weight tensor, a class count); keyword-only parameters are the
recipe's options, with `Annotated[..., Field(ge=0, description="...")]` for range and meaning. Only the annotations of
options are ever evaluated, so a part's module can name torch types in its signature without importing torch.

    @part("decay")
    def constant(progress: Progress) -> float:
        "Keep the learning rate where the warm-up left it."
        return 1.0
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, create_model

from trainrun.recipe import elsewhere
from trainrun.recipe.kinds import KINDS, Options, PartNode


@dataclass(frozen=True)
class Part:
    """A named thing that a recipe can ask for.

    A family part serves many names with one function, which then gets the name as its first argument.
    `facts` are properties that must be known before the part is built (`memory_format` of a model, say).
    """

    kind: str
    name: str
    function: Callable[..., Any]
    family: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def manual(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The docstring's first line; a family's says {name} where the name goes."""
        return self.manual.split("\n", 1)[0].replace("{name}", self.name)

    @functools.cached_property
    def options(self) -> type[BaseModel]:
        """The model that validates this part's options: the function's keyword-only parameters and its kind's common ones."""
        return self._model(KINDS[self.kind].common)

    @functools.cached_property
    def bare_options(self) -> type[BaseModel]:
        """The model of its own options alone, for where the part stands inside another of its kind."""
        return self._model(Options)

    def _model(self, base: type[Options]) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                annotation = parameter.annotation
                if isinstance(annotation, str):
                    annotation = eval(annotation, vars(sys.modules[self.function.__module__]))  # the part's own source, never a recipe's
                default = ... if parameter.default is parameter.empty else parameter.default
                fields[parameter.name.rstrip("_")] = (annotation, default)
        return create_model(f"{self.kind}_{self.name}", __base__=base, **fields)

    @functools.cached_property
    def own_options(self) -> list[str]:
        """The names of this part's own options, without those of its kind and without building a model."""
        parameters = inspect.signature(self.function).parameters.values()
        return [p.name.rstrip("_") for p in parameters if p.kind is p.KEYWORD_ONLY]

    def call(self, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with this part's own options bound; the kind's common options are left to whoever reads them."""
        names = [p.name for p in inspect.signature(self.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        bound = {name: options[name.rstrip("_")] for name in names}
        return functools.partial(self.function, *([self.name] if self.family else []), **bound)


class Registry:
    """The parts by kind and name."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, Part]] = {kind: {} for kind in KINDS}

    def add(self, new: Part) -> None:
        """Register a part; a name that is taken within its kind is a bug of whoever registers it."""
        if new.kind not in self._parts:
            raise ValueError(f"no kind of part is called {new.kind!r}; there are {', '.join(self._parts)}")
        taken = self._parts[new.kind].get(new.name)
        if taken and taken.function is not new.function:
            raise ValueError(f"{new.kind} {new.name!r} is registered already, by {taken.function.__module__}")
        self._parts[new.kind][new.name] = new

    def snapshot(self) -> dict[str, dict[str, Part]]:
        """What is registered now, for `restore`."""
        return {kind: dict(parts) for kind, parts in self._parts.items()}

    def restore(self, snapshot: dict[str, dict[str, Part]]) -> None:
        """Forget what was registered since the snapshot."""
        self._parts = {kind: dict(parts) for kind, parts in snapshot.items()}

    def names(self, kind: str) -> list[str]:
        """The names of a kind, in the order of registration; `timm/*` stands for an open family."""
        return list(self._parts[kind])

    def get(self, kind: str, name: str) -> Part | None:
        """The part of that name, or None; a name such as `timm/resnet50d` finds the open family `timm/*`."""
        found = self._parts[kind].get(name)
        if found is None and "/" in name:
            family = self._parts[kind].get(name.split("/", 1)[0] + "/*")
            if family and name.split("/", 1)[1]:
                return Part(kind, name, family.function, True, family.facts)
        return found

    def nearest(self, kind: str, name: str) -> str | None:
        """The registered name that is most likely meant by another one: what others call so, or what is spelt nearly so."""
        called = elsewhere.part_called(kind, name)
        return called if called and called.split()[0] in self._parts[kind] else nearest(name, self._parts[kind])

    def build(self, node: PartNode) -> Callable[..., Any]:
        """The part's function with the node's options bound, ready for what the run supplies."""
        found = self.get(node.kind, node.name)
        if found is None:
            raise KeyError(f"{node.kind} {node.name}")
        return found.call(node.options)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, if one is close enough to be a likely slip."""
    names = list(known)
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


registry = Registry()


def part(
    kind: str, name: str | None = None, *, names: Iterable[str] = (), **facts: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function or class as a part, under its own name, under `name`, or as a family under each of `names`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        listed = list(names)
        for each in listed or [name or function.__name__]:
            registry.add(Part(kind, each, function, family=bool(listed) or each.endswith("/*"), facts=facts))
        return function

    return register


__all__ = ["KINDS", "Options", "Part", "PartNode", "Registry", "nearest", "part", "registry"]
