"""From a `Move` or a `Warp` to pixels: moves copy rows of memory, warps interpolate once, those along the axes by `separable.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun.parts.augmentations.geometry import Border, Move, Warp, centre, inside
from trainrun.parts.augmentations.separable import filtered, pieces, samples, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def transform(images: torch.Tensor, motion: Move | Warp, border: Border) -> torch.Tensor:
    """[B, C, H, W] to [B, C, *motion.size], uint8 or, after `normalize`, float; channels last in memory. What lies beyond the border is 0,
    reflected about the outermost pixel, or the outermost pixel itself.
    """
    if not len(images):
        return images.permute(0, 2, 3, 1).new_empty(0, *motion.size, images.shape[1]).permute(0, 3, 1, 2)
    if isinstance(motion, Move):
        return _moved(images, motion, border)
    return filtered(images, motion, border) if motion.aligned else _warped(images, motion, border)


def _moved(images: torch.Tensor, move: Move, border: Border) -> torch.Tensor:
    import torch

    count, channels, old_height, old_width = images.shape
    height, width = move.size
    x, mirrored = move.x, None if isinstance(move.right, int) else move.right < 0
    down = 1 if isinstance(move.down, int) else move.down[:, None]  # a number is 1: no part turns all pictures upside down
    source = _sources(images, move.margin, border, mirrored is not None)
    tall, wide = source.shape[1:3]
    if move.size == (old_height, old_width) and not move.margin and isinstance(down, int):
        # No pixel leaves the picture, so each is as it was or mirrored: whole pictures are copied in one piece. A where() over
        # pixels is seven times slower on a CPU.
        sample = torch.arange(count, device=images.device)
        return source.index_select(0, sample if mirrored is None else sample + count * mirrored).permute(0, 3, 1, 2)
    # Every run of width x channels bytes is a window row; index_select then copies whole rows, which is the cheapest move.
    pitch = wide * channels
    start = move.margin * (pitch + channels)
    first = torch.arange(start, start + count * tall * pitch, tall * pitch, device=images.device) + move.y * pitch
    if mirrored is not None:  # the second half of the source has every picture mirrored: there columns count from the other side
        first = first + (count * tall * pitch) * mirrored
        x = torch.where(mirrored, old_width - 1 - x, x)
    first = (first + x * channels)[:, None] + down * torch.arange(0, height * pitch, pitch, device=images.device)
    windows = source.view(-1).unfold(0, width * channels, 1)
    return windows.index_select(0, first.view(-1)).view(count, height, width, channels).permute(0, 3, 1, 2)


def _sources(images: torch.Tensor, margin: int, border: Border, mirrors: bool) -> torch.Tensor:
    """The pictures with a margin on every side, [B, H, W, C], and after them the same ones mirrored where that is asked for."""
    import torch

    count, channels, height, width = images.shape
    if not margin:
        pictures = images.permute(0, 2, 3, 1)
        return torch.cat((pictures, images.flip(-1).permute(0, 2, 3, 1))) if mirrors else pictures.contiguous()
    make = images.new_zeros if border == "zero" else images.new_empty
    source = make((2 if mirrors else 1) * count, height + 2 * margin, width + 2 * margin, channels)
    middle = slice(margin, margin + width)
    source[:count, margin : margin + height, middle] = images.permute(0, 2, 3, 1)
    if mirrors:
        source[count:, margin : margin + height, middle] = images.flip(-1).permute(0, 2, 3, 1)
    if border != "zero":
        outside = torch.arange(margin, device=images.device)
        for length, dim in ((width, 2), (height, 1)):
            for start in (0, margin + length):
                places = inside(outside + (start - margin), length, border)
                source.narrow(dim, start, margin).copy_(source.index_select(dim, places + margin))
    return source


def _warped(images: torch.Tensor, warp: Warp, border: Border) -> torch.Tensor:
    found = images.new_empty(len(images), *warp.size, images.shape[1])
    for piece in pieces(images, warp.size):
        values = _sampled(images[piece], warp.matrix[piece], warp, border)
        for channel in range(images.shape[1]):  # four times faster on a CPU than all at once
            found[piece, ..., channel] = values[:, channel]
    return found.permute(0, 3, 1, 2)


def _sampled(images: torch.Tensor, matrices: torch.Tensor, warp: Warp, border: Border) -> torch.Tensor:
    """The interpolated values, float32 [B, C, *warp.size]; of levels the whole numbers nearest to them."""
    from torch.nn.functional import grid_sample

    pictures = images.float().contiguous()
    shifted = _samples(matrices, warp)
    total = None
    for m in shifted:
        grid = _grid(m, warp, images.shape[-2:], border)
        values = grid_sample(pictures, grid, padding_mode="zeros" if border == "zero" else "border", align_corners=False)
        total = values if total is None else total.add_(values)
    assert total is not None
    values = total if len(shifted) == 1 else total.div_(len(shifted))
    return values if images.is_floating_point() else values.round_()


def _samples(m: torch.Tensor, warp: Warp) -> list[torch.Tensor]:
    """The matrices that are averaged: one, or, where pictures are shrunk, a square of them shifted by parts of an output pixel."""
    k = samples(warp.shrink)
    if k == 1:
        return [m]
    x, y = centre(warp.size)
    at = m[..., 0] * x + m[..., 1] * y + m[..., 2]
    scales = [(m[:, :2, j] - at[:, :2] / at[:, 2:] * m[:, 2:, j]).div(at[:, 2:]).square().sum(1) for j in (0, 1)]
    across, down = (spread(s, k)[:, None] for s in scales)
    places = [(n + 0.5) / k - 0.5 for n in range(k)]
    return [_shifted(m, across * i, down * j) for i in places for j in places]


def _shifted(m: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m = m.clone()
    m[..., 2] += x * m[..., 0] + y * m[..., 1]
    return m


def _grid(m: torch.Tensor, warp: Warp, shape: Sequence[int], border: Border) -> torch.Tensor:
    """The points as grid_sample counts them, -1 and 1 at the outer edges of the picture: float32 [B, *warp.size, 2]."""
    import torch

    height, width = shape
    rows, columns = warp.size
    if border != "reflect":  # then that count can be part of the matrix
        m = torch.stack(((2 * m[:, 0] + m[:, 2]) / width - m[:, 2], (2 * m[:, 1] + m[:, 2]) / height - m[:, 2], m[:, 2]), 1)
    m = m.float()
    points = _lines(m[:, :2], rows, columns)
    if warp.projective:
        points.div_(_lines(m[:, 2:].expand(-1, 2, -1), rows, columns))
    if border == "reflect":
        lengths = torch.tensor([float(width), float(height)]).to(m.device, non_blocking=True).repeat(columns)
        last = (lengths - 1).clamp(min=1)
        # Reflected about the centres of the first and the last pixel until they lie between them.
        points = points.add_(last).remainder_(2 * last).sub_(last).abs_().mul_(2).add_(1).div_(lengths).sub_(1)
    return points.view(-1, rows, columns, 2)


def _lines(m: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """m [B, 2, 3] times (column, row, 1) of each pixel: [B, rows, 2 x columns], the two products of a pixel side by side.

    Long lines are what vector units like; no fused operation is used, whose rounding could depend on the place in a line.
    """
    import torch

    along = torch.arange(columns, device=m.device)[:, None]
    start = (along * m[:, None, :, 0] + m[:, None, :, 2]).view(-1, 1, 2 * columns)
    step = m[:, None, :, 1].expand(-1, columns, -1).reshape(-1, 1, 2 * columns)
    return (torch.arange(rows, device=m.device)[:, None] * step).add_(start)
