"""What the steps measured: kept on the device, read where the run logs, and checked there for numbers that are no numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trainrun.world import World


@dataclass
class Sums:
    """Loss and hits summed over samples, in float64 and in the order of the steps."""

    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0

    def add(self, loss: float, correct: float, samples: int) -> None:
        self.loss += loss
        self.correct += correct
        self.samples += samples

    def clear(self) -> None:
        self.loss, self.correct, self.samples = 0.0, 0.0, 0

    def figures(self, prefix: str) -> dict[str, float]:
        """Means a sample, as `{prefix}_loss` in nats and `{prefix}_accuracy` in 0..1; nothing where no sample was seen."""
        if not self.samples:
            return {}
        return {f"{prefix}_loss": self.loss / self.samples, f"{prefix}_accuracy": self.correct / self.samples}


class Record:
    """A row a step on the device; `read` moves the rows to the sums of the interval (a log line) and the period (an epoch line)."""

    def __init__(self, rows: int, world: World) -> None:
        self.world = world
        self.rows = torch.zeros(rows, 2, dtype=torch.float64, device=world.device)
        self.sizes: list[int] = []
        self.interval, self.period = Sums(), Sums()

    def write(self, totals: torch.Tensor, samples: int) -> None:
        """One step's summed loss and hits (float64 [2], this process's part) over `samples` of all processes."""
        self.rows[len(self.sizes)] = totals
        self.sizes.append(samples)

    @property
    def full(self) -> bool:
        return len(self.sizes) == len(self.rows)

    def read(self) -> int | None:
        """Wait for the device and add the rows to the sums; returns how many steps ago a loss was not finite (0: the last step)."""
        sizes, self.sizes = self.sizes, []
        rows = self.world.sum(self.rows[: len(sizes)].clone()).tolist()
        for n, ((loss, correct), samples) in enumerate(zip(rows, sizes, strict=True)):
            if not math.isfinite(loss):
                return len(sizes) - 1 - n
            self.interval.add(loss, correct, samples)
            self.period.add(loss, correct, samples)
        return None

    def state(self) -> dict[str, Any]:
        """The sums as plain values; call `read` first."""
        return {"interval": asdict(self.interval), "period": asdict(self.period)}

    def load(self, state: dict[str, Any]) -> None:
        self.interval, self.period = Sums(**state["interval"]), Sums(**state["period"])


def finite(parameters: list[torch.Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; waits for the device."""
    return bool(torch.stack(torch._foreach_norm([p.detach() for p in parameters])).isfinite().all())


def culprits(model: torch.nn.Module, images: torch.Tensor, count: int = 3) -> list[str]:
    """The first few layers concerned: parameters that are not finite, else modules whose output on `images` is not."""
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if bad:
        return bad[:count]
    found: list[str] = []

    def watch(name: str) -> Any:
        def see(_module: Any, _inputs: Any, output: Any) -> None:
            if torch.is_tensor(output) and not output.isfinite().all():
                found.append(name or "the output")

        return see

    watched = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if not list(module.children())]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in watched:
            hook.remove()
    return found[:count]
