"""Warps along the axes of a picture: rows and columns are filtered one after the other, which costs a fraction of both at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainrun.parts.augmentations.geometry import Border, Warp, inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch

# Up to here a plain bilinear sample, whose support is two pixels, misses so little that one more pass does not pay.
_MILD = 1.25
_CHUNK = 1 << 18  # numbers at a time on a CPU: what is computed stays in its cache


def samples(shrink: float) -> int:
    """How many bilinear samples in a direction are averaged to one output pixel, where up to `shrink` input pixels come to lie on it."""
    return math.ceil(shrink) if shrink > _MILD else 1


def spread(squared: torch.Tensor, k: int) -> torch.Tensor:
    """How far apart k > 1 samples lie, from first to last and one k-th more, as a share of an output pixel.

    squared: s^2, where s input pixels come to lie on one of the output. Together with the bilinear kernel (variance 1/6) the samples
    have the variance s^2 / 6 of the triangle of half-width s, which antialiased resizing uses in Pillow and torchvision. Where a
    sample is enlarged they coincide.
    """
    return ((squared - 1).clamp(min=0) * (2 / (1 - k**-2)) / squared.clamp(min=1)).sqrt()


def pieces(images: torch.Tensor, size: tuple[int, int]) -> Iterator[slice]:
    """A few of the pictures [B, C, H, W] at a time on a CPU, elsewhere all at once; size: height and width of what is made of them."""
    count, channels, height, width = images.shape
    at_once = max(1, _CHUNK // (channels * max(size[0] * size[1], height * width))) if images.device.type == "cpu" else count
    return (slice(start, start + at_once) for start in range(0, count, at_once))


Taps = tuple["torch.Tensor", "torch.Tensor"]  # places int64 and their weights float32, [B, output pixels, taps]


def filtered(images: torch.Tensor, warp: Warp, border: Border) -> torch.Tensor:
    """[B, C, H, W] to [B, C, *warp.size] of the same type, uint8 or float, channels last in memory, by an `aligned` warp."""
    pictures = images.permute(0, 2, 3, 1)
    rows, columns = _taps(warp, (pictures.shape[1], pictures.shape[2]), border)
    found = pictures.new_empty(len(pictures), *warp.size, pictures.shape[3])
    for piece in pieces(images, warp.size):
        _filter(pictures[piece], (rows[0][piece], rows[1][piece]), (columns[0][piece], columns[1][piece]), found[piece])
    return found.permute(0, 3, 1, 2)


def cut_out(picture: np.ndarray, warp: Warp, scale: int = 1) -> np.ndarray:
    """uint8 [H, W, C] to uint8 [*warp.size, C]: bit for bit what `filtered` makes of one picture with the border `edge`.

    Only what is seen of a large picture is touched. It may have been decoded at 1 / scale of the size that the warp is made for.
    """
    import torch

    height, width, channels = picture.shape
    rows, columns = _taps(warp, (height, width), "edge", scale)
    (top, bottom), (left, right) = ((int(places.min()), int(places.max()) + 1) for places, _ in (rows, columns))
    piece = torch.from_numpy(picture[top:bottom, left:right].astype("float32"))[None]
    found = torch.empty(1, *warp.size, channels, dtype=torch.uint8)
    _filter(piece, (rows[0] - top, rows[1]), (columns[0] - left, columns[1]), found)
    return found[0].numpy()


def _taps(warp: Warp, shape: tuple[int, int], border: Border, scale: int = 1) -> tuple[Taps, Taps]:
    """The rows, and the columns, of pictures of `shape` (height, width) that each of the output is mixed of, and their weights.

    scale: the pictures are so many times smaller than those that the warp is made for.
    """
    m, k = warp.matrix, samples(warp.shrink / scale)
    rows, columns = (
        _along((m[:, axis, 2] + 0.5) / scale - 0.5, m[:, axis, axis] / scale, count, length, k, border)
        for axis, count, length in ((1, warp.size[0], shape[0]), (0, warp.size[1], shape[1]))
    )
    return rows, columns


def _along(start: torch.Tensor, step: torch.Tensor, count: int, length: int, k: int, border: Border) -> Taps:
    import torch

    start, step = start[:, None, None], step[:, None, None]
    at = start + step * torch.arange(count, dtype=torch.float64, device=step.device)[:, None]
    if k > 1:
        at = at + step * spread(step.square(), k) * ((torch.arange(k, dtype=torch.float64, device=step.device) + 0.5) / k - 0.5)
    if border != "zero":
        at = inside(at, length, border)
    first = at.floor()
    share = at - first
    places, weights = torch.cat((first, first + 1), 2), torch.cat((1 - share, share), 2) / k
    if border == "zero":
        weights = weights * ((places >= 0) & (places < length))
    return places.clamp(0, length - 1).long(), weights.float()


def _filter(pictures: torch.Tensor, rows: Taps, columns: Taps, found: torch.Tensor) -> None:
    """[B, H, W, C] to `found` [B, *size, C], rounded where that holds levels."""
    import torch
    from torch.nn.functional import embedding_bag

    count, height, width, channels = pictures.shape
    sample, channel = (torch.arange(n, device=pictures.device) for n in (count, channels))
    # A bag is summed in the order of its taps whatever stands beside it, which a product of matrices does not promise. So that both
    # passes add long lines of memory, everything is turned as one matrix after each: moving single pixels takes twice as long.
    lines = pictures.float().reshape(count * height, width * channels)
    places = rows[0] + height * sample[:, None, None]
    tall = embedding_bag(places.flatten(0, 1), lines, per_sample_weights=rows[1].flatten(0, 1), mode="sum")
    upright = tall.t().contiguous().view(width * channels * count, -1)
    places = ((columns[0].transpose(0, 1) * channels)[:, None] + channel[:, None, None]) * count + sample[:, None]
    weights = columns[1].transpose(0, 1)[:, None].expand(-1, channels, -1, -1)
    done = embedding_bag(places.flatten(0, 2), upright, per_sample_weights=weights.flatten(0, 2), mode="sum")
    done = done if found.is_floating_point() else done.round_()
    found.copy_(done.view(found.shape[2] * channels, -1).t().view(found.shape))
