"""Weights from files: read as tensors only, and made to fit a network with other classes or channels."""

from __future__ import annotations

import contextlib
import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainrun.errors import UserError

FILES = (".safetensors", ".pth", ".pt")
_READS = ContextVar("reads", default=True)


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Within, networks are built as for their weights, with frozen norms and all, but no weights are fetched or read: a checkpoint's follow."""
    before = _READS.set(False)
    try:
        yield
    finally:
        _READS.reset(before)


def reads() -> bool:
    """Whether weights are read; not within `unread`."""
    return _READS.get()


def is_path(weights: str) -> bool:
    """Whether `weights` speaks of a file and not of published weights."""
    return weights.endswith(FILES) or "/" in weights


def read(path: str) -> Mapping[str, Tensor]:
    """The state dict in a .safetensors or .pth file; a .pth may hold it under `state_dict` or `model`; within `unread` nothing."""
    if not reads():
        return {}
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"no weights at {file}: set model.weights to the path of a .safetensors or .pth file")
    state: Any
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} is not a readable safetensors file ({error}): fetch or save it again") from None
    else:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            reason = str(error).split("\n", 1)[0]
            raise UserError(
                f"{file} cannot be read as plain tensors ({reason}): save it as torch.save(model.state_dict(), {file.name!r})"
            ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file} holds no state dict (names with tensors): save it as torch.save(model.state_dict(), {file.name!r})")
    return state


def ends(model: nn.Module) -> tuple[str, str]:
    """The names of the first convolution and of the classifier, which is the last linear layer or else the last convolution."""
    modules = list(model.named_modules())
    convolutions = [name for name, module in modules if isinstance(module, nn.Conv2d)]
    linears = [name for name, module in modules if isinstance(module, nn.Linear)]
    return convolutions[0], (linears or convolutions)[-1]


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """A first convolution's kernel [out, in, h, w] for another number of input channels, with the same response to a grey picture."""
    known = kernel.shape[1]
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    return kernel.repeat(1, ceil(channels / known), 1, 1)[:, :channels] * (known / channels)


def load(model: nn.Module, state: Mapping[str, Tensor], source: str, stem: str | None, heads: Iterable[str]) -> None:
    """Load a state dict into a network; `source` names it in messages.

    A kernel of `stem` for other channels is adapted, and layers in `heads` of another shape keep their own values.
    Anything else that is missing, unknown or of another shape is a UserError. The network's attribute `covered` names what it got; within
    `unread` it gets nothing, and keeps all its own values.
    """
    if not reads():
        return
    own = model.state_dict()
    fitting = OrderedDict(state)
    # Versions tell modules how to read older files; a file without them is read as written by this version.
    fitting._metadata = getattr(state, "_metadata", own._metadata)  # type: ignore[attr-defined]  # torch keeps it there, and annotates it nowhere
    fresh = {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}
    for key in fresh & fitting.keys() & own.keys():
        if fitting[key].shape != own[key].shape:
            del fitting[key]
    kernel = f"{stem}.weight"
    if kernel in fitting and kernel in own and fitting[kernel].ndim == 4 and fitting[kernel].shape[1] != own[kernel].shape[1]:
        fitting[kernel] = adapt_channels(fitting[kernel], own[kernel].shape[1])
    wrong = [f"{k} is {list(v.shape)}, not {list(own[k].shape)}" for k, v in fitting.items() if k in own and v.shape != own[k].shape]
    if wrong:
        raise _misfit(source, wrong)
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    found = [f"{k} is missing" for k in missing if k not in fresh and not k.endswith("num_batches_tracked")]
    found += [f"{k} is unknown" for k in unexpected]
    if found:
        raise _misfit(source, found)
    model.covered = frozenset(fitting)  # type: ignore[assignment]  # torch annotates attributes of a module as tensors and modules


def _misfit(source: str, found: list[str]) -> UserError:
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return UserError(
        f"{source} does not fit this network: {'; '.join(found[:3])}{more}: set model to the one that was saved, or model.weights=null"
    )
