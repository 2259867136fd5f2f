"""The world a run lives in: device, arithmetic, processes. One process is a world of one."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainrun.errors import UserError


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is a unit of the hardware rather than an emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # the only way torch tells
    return False


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; on a CPU what the machine and its control group still allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(free, 0)


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
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's contiguous share of the ids of a batch: shares differ by at most one."""
        return torch.tensor_split(batch, self.size)[self.rank]

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

    def align_buffers(self, model: torch.nn.Module) -> None:
        """Give every process the first one's buffers, so that all evaluate the model that is saved."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


# Decisions travel over the CPU, so that agreeing on them never waits for a GPU.
_control: dist.ProcessGroup | None = None


@contextlib.contextmanager
def enter() -> Iterator[World]:
    """The world as torchrun's environment variables describe it, with process groups for as long as the context lasts."""
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
    # A process that lost its peers must end within the minute that users are promised.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    _control = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))
    try:
        yield World(device, rank, size, local_size)
    finally:
        _control = None
        dist.destroy_process_group()
