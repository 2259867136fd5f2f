"""What the steps measured: kept on the device, read where the run logs, and checked there for numbers that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trainrun.world import World


@dataclass
class Sums:
    """What the steps measure, by name and summed over samples, in float64 and in the order of the steps."""

    values: dict[str, float]
    samples: int = 0

    @staticmethod
    def of(names: Iterable[str]) -> Sums:
        """Nothing yet."""
        return Sums(dict.fromkeys(names, 0.0))

    def add(self, values: Iterable[float], samples: int) -> None:
        for name, value in zip(self.values, values, strict=True):
            self.values[name] += value
        self.samples += samples

    def clear(self) -> None:
        self.values, self.samples = dict.fromkeys(self.values, 0.0), 0

    def figures(self, prefix: str) -> dict[str, float]:
        """Means a sample, each as `{prefix}_{name}`; nothing where no sample was seen."""
        return {f"{prefix}_{name}": value / self.samples for name, value in self.values.items()} if self.samples else {}


@dataclass
class Window:
    """The training error of every `length` steps, counted from the run's start; without a length it never ends."""

    length: int | None
    steps: int = 0
    correct: float = 0.0
    samples: int = 0
    error: float | None = None  # of the window that the last step closed

    def add(self, correct: float, samples: int) -> None:
        self.steps, self.correct, self.samples, self.error = self.steps + 1, self.correct + correct, self.samples + samples, None
        if self.steps == self.length:
            self.error = 1 - self.correct / self.samples
            self.steps, self.correct, self.samples = 0, 0.0, 0

    def ends_after(self, steps: int) -> bool:
        """Whether the window ends with so many steps more."""
        return self.length is not None and self.steps + steps == self.length


class Record:
    """A row a step on the device; `read` moves the rows to the sums of the interval (a log line) and the period (an epoch line)."""

    def __init__(self, rows: int, world: World, names: Sequence[str], window: int | None = None) -> None:
        """Room for `rows` steps between reads of what is called `names`, the loss first; `window` is the length in steps of what a warm-up's
        training error is measured over.
        """
        self.world, self.names = world, tuple(names)
        self.rows = torch.zeros(rows, len(names) + 1, dtype=torch.float64, device=world.device)
        self.sizes: list[int] = []
        self.interval, self.period = Sums.of(names), Sums.of(names)
        self.window = Window(window)

    def write(self, totals: torch.Tensor, samples: int) -> None:
        """One step's sums and its gradient norm (float64, this process's part) over `samples` of all processes."""
        self.rows[len(self.sizes)] = totals
        self.sizes.append(samples)

    @property
    def full(self) -> bool:
        """Whether it must be read before the next step: there is no room, or a window ends, which the next step's rate may hang on."""
        return len(self.sizes) == len(self.rows) or self.window.ends_after(len(self.sizes))

    def read(self, tensors: Iterable[torch.Tensor]) -> tuple[str, int] | None:
        """Wait for the device, once, and add the rows to the sums.

        Returns what was not finite first (loss, gradient norm, or one of `tensors`, the state as it is now) and how many steps ago.
        """
        sizes, self.sizes = self.sizes, []
        # Zero where every tensor is finite, else NaN. A norm above 2e19 overflows float32 and counts as infinite.
        mark = (torch.stack(torch._foreach_norm(list(tensors))) * 0).sum()
        last = mark.to(self.rows).expand(1, self.rows.shape[1])
        *rows, (state, *_) = self.world.sum(torch.cat((self.rows[: len(sizes)], last))).tolist()
        for ago, (*values, norm), samples in zip(range(len(sizes) - 1, -1, -1), rows, sizes, strict=True):
            for what, value in (("loss", values[0]), ("gradient norm", norm)):
                if not math.isfinite(value):
                    return what, ago
            self.interval.add(values, samples)
            self.period.add(values, samples)
            if self.window.length is not None:
                self.window.add(values[self.names.index("accuracy")], samples)
        return None if math.isfinite(state) else ("weights or their moments", 0)

    def state(self) -> dict[str, Any]:
        """The sums as plain values; call `read` first."""
        return {"interval": asdict(self.interval), "period": asdict(self.period), "window": asdict(self.window)}

    def load(self, state: dict[str, Any]) -> None:
        self.interval, self.period, self.window = Sums(**state["interval"]), Sums(**state["period"]), Window(**state["window"])


def culprits(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], passes: Iterable[Callable[[], object]], autocast: Any, count: int = 3
) -> list[str]:
    """The first few layers concerned: tensors of the state whose norm is not finite, else modules with an output that is not.

    passes: forward passes of the model over batches, made one by one until one shows it, in the arithmetic of `autocast`.
    """
    found = [name for name, tensor in state.items() if not tensor.norm().isfinite()]

    def watch(name: str) -> Any:
        def see(_module: Any, _inputs: Any, output: Any) -> None:
            if torch.is_tensor(output) and not output.isfinite().all():
                found.append(name or "the output")

        return see

    watched = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if not list(module.children())]
    try:
        with torch.no_grad(), autocast:
            for forward in passes:
                if found:
                    break
                forward()
    finally:
        for hook in watched:
            hook.remove()
    return found[:count]
