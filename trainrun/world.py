"""The world a run lives in: device, arithmetic, processes. One process is a world of one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainrun.errors import TrainrunError, UserError

T = TypeVar("T")


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is a unit of the hardware rather than an emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # the only way torch tells
    return False


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that are free on the device; on a CPU what the machine and the process's control groups still allow.

    root: where /proc and /sys are found.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        free = int(_values(root / "proc/meminfo")["MemAvailable:"]) * 1024
    return max(min([free, *_left_in_groups(root)]), 0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """For each control group that limits this process's memory, and each group around it, what it still allows."""
    for group, (limit, usage, cached) in _groups(root):
        with contextlib.suppress(OSError, ValueError):  # no file where nothing is counted, "max" where there is no limit
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
            # The kernel gives up cached files before it refuses memory.
            yield most - used + sum(int(value) for name, value in _values(group / "memory.stat").items() if name in cached)


_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    try:
        mine = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind != "cgroup2" and not (kind == "cgroup" and "memory" in options):
            continue
        controller = "" if kind == "cgroup2" else "memory"
        path = Path(next((path for _, names, path in mine if controller in names.split(",")), "/"))
        top = root / fields[4].lstrip("/")
        # In a container the path may be told as the host sees it, with the part that is mounted here in front.
        inside = path.relative_to(fields[3]) if path.is_relative_to(fields[3]) else Path()
        for group in (top / inside, *(top / above for above in inside.parents)):
            yield group, _V2 if kind == "cgroup2" else _V1


def _values(file: Path) -> dict[str, str]:
    """The second word of each line by its first."""
    return dict(line.split()[:2] for line in file.read_text().splitlines())


@dataclass(frozen=True)
class World:
    """Where this process computes, and which of how many processes it is."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The device as a person knows it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def autocast(self, precision: str) -> Any:
        """The autocast region of a precision; for fp32 one that does nothing."""
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if precision == "bf16" else torch.float16)

    def scaler(self, precision: str) -> torch.amp.GradScaler:
        """The gradient scaler that fp16 needs; for other precisions one that does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model whose backward pass averages gradients over all processes."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        # After its first backward pass DDP lays out its buckets anew, and over more than two processes the order in which a
        # number is summed depends on its place in them. A made-up pass first, and a resumed process sums as one that never stopped.
        model.forward = lambda: sum(p.sum() for p in model.parameters() if p.requires_grad)  # type: ignore[method-assign]  # for one backward pass, of all weights
        wrapped().backward()
        del model.forward
        wrapped.zero_grad(set_to_none=True)
        return wrapped

    def share(self, batch: torch.Tensor, together: int = 1) -> torch.Tensor:
        """This process's contiguous share of the ids of a batch, in groups of `together` that stay whole: shares differ by at most one group."""
        first, last = self.shares(len(batch), together)[self.rank]
        return batch[first:last]

    def shares(self, count: int, together: int = 1) -> list[tuple[int, int]]:
        """Where the shares of all processes begin and end in a batch of `count` pictures."""
        each, more = divmod(-(-count // together), self.size)
        ends = [min((rank * each + min(rank, more)) * together, count) for rank in range(self.size + 1)]
        return list(itertools.pairwise(ends))

    def gather(self, values: torch.Tensor, shares: Sequence[tuple[int, int]]) -> torch.Tensor:
        """The rows of all processes, one process after the other, in every process; `shares` says where those of each begin and end."""
        if self.size == 1:
            return values
        mine = values.new_zeros(max(last - first for first, last in shares), *values.shape[1:])
        mine[: len(values)] = values
        parts = [torch.empty_like(mine) for _ in shares]
        dist.all_gather(parts, mine)
        return torch.cat([part[: last - first] for part, (first, last) in zip(parts, shares, strict=True)])

    def each(self, value: T) -> list[T]:
        """The values of all processes, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_control)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process raised it; waits for the other processes, never for a device."""
        if self.size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=_control)
        return tuple(bool(f) for f in raised.tolist())

    def tell(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=_control)
        return box[0]

    def first(self, call: Callable[[], T]) -> T:
        """What the call gives in the first process, in every process; a UserError that it meets there is raised in all."""
        if self.size == 1:
            return call()
        value, mistake = None, None
        if self.main:
            try:
                value = call()
            except UserError as error:
                mistake = error
        value, text, then = self.tell((value, mistake and str(mistake), mistake and mistake.next))
        if text is not None:
            raise mistake or UserError(text).then(then)
        return value

    def align_buffers(self, model: torch.nn.Module) -> None:
        """Give every process the first one's buffers, so that all evaluate the model that is saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


# Decisions travel over the CPU, so that agreeing on them never waits for a GPU.
_control: dist.ProcessGroup | None = None

# How long one process may let the others wait, as for decoding or a save. A process that ends is noticed at once: its
# connections close, and torchrun ends the others.
_PATIENCE = timedelta(minutes=30)
_SAME_WORDS = 5.0  # seconds that a process waits for the first one to fail as it did


LOST = "another process of this run has ended, and has said why unless it was killed; the last checkpoint stands"


def lost(error: BaseException) -> bool:
    """Whether the error says that another process of the run is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


@contextlib.contextmanager
def enter() -> Iterator[World]:
    """The world as torchrun's environment variables describe it, with process groups for as long as the context lasts.

    Raises TrainrunError where another process is gone. A TrainrunError that the first process meets too is marked as `told`.
    """
    global _control
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield World(torch.device("cuda", 0) if cuda else torch.device("cpu"))
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} finds {torch.cuda.device_count()} GPUs here; start at most one process a GPU with --nproc-per-node"
        )
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store, *_ = next(dist.rendezvous("env://", timeout=_PATIENCE))
    if local_size == size:  # torchrun keeps one store over its restarts, with the addresses of processes that are gone
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    _control = dist.new_group(backend="gloo", timeout=_PATIENCE)  # type: ignore[assignment]  # torch says it might not be a member
    try:
        yield World(device, rank, size, local_size)
    except TrainrunError as error:
        error.told = _told(store, rank, str(error))
        raise
    except RuntimeError as error:
        if not lost(error):
            raise
        raise TrainrunError(LOST) from error
    finally:
        _control = None
        dist.destroy_process_group()


def _told(store: dist.Store, rank: int, text: str) -> bool:
    """Whether the first process says the same, so that it is said once; waits a moment for it to find out."""
    key = hashlib.sha256(text.encode()).hexdigest()
    if rank == 0:
        store.set(key, "")
        return False
    deadline = time.monotonic() + _SAME_WORDS
    with contextlib.suppress(dist.DistError):  # the first process may have taken the store with it
        while time.monotonic() < deadline:
            if store.check([key]):
                return True
            time.sleep(0.05)
    return False
