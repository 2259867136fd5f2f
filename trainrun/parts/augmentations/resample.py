"""From a `Move` or a `Warp` to pixels: moves copy rows of memory, warps interpolate once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainrun.parts.augmentations.geometry import Border, Move, Warp, centre

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

# Up to here a plain bilinear sample, whose support is two pixels, misses so little that one more pass does not pay.
_MILD = 1.25
_CHUNK = 1 << 18  # output numbers at a time on a CPU: what is computed stays in its cache


def transform(images: torch.Tensor, motion: Move | Warp, border: Border) -> torch.Tensor:
    """uint8 [B, C, H, W] to uint8 [B, C, *motion.size], channels last in memory; what lies beyond the border is black, reflected
    about the outermost pixel, or the outermost pixel itself.
    """
    if not len(images):
        return images.permute(0, 2, 3, 1).new_empty(0, *motion.size, images.shape[1]).permute(0, 3, 1, 2)
    return _moved(images, motion, border) if isinstance(motion, Move) else _warped(images, motion, border)


def cut_out(picture: np.ndarray, warp: Warp, scale: int = 1) -> np.ndarray:
    """uint8 [H, W, C] to uint8 [*warp.size, C]: what `transform` makes of one picture with the border `edge` and a warp along its axes.

    Many times faster where it shrinks, because rows and columns are done one after the other; sums are taken in another order, so a
    level may be rounded to its neighbour. The picture may have been decoded at 1 / scale of the size that the warp is made for.
    """
    import numpy as np
    import torch
    from torch.nn.functional import embedding_bag

    height, width, channels = picture.shape
    (right, _, x), (_, down, y), _ = warp.matrix[0].tolist()
    shrink = warp.shrink / scale
    rows, columns = (
        _weights((start + 0.5) / scale - 0.5, step / scale, count, length, shrink)
        for start, step, count, length in ((y, down, warp.size[0], height), (x, right, warp.size[1], width))
    )
    (top, bottom), (left, end) = ((int(places.min()), int(places.max())) for places, _ in (rows, columns))
    piece = torch.from_numpy(picture[top : bottom + 1, left : end + 1].astype(np.float32))
    tall = embedding_bag(rows[0] - top, piece.flatten(1), per_sample_weights=rows[1], mode="sum")
    turned = tall.view(len(tall), -1, channels).transpose(0, 1).flatten(1)
    done = embedding_bag(columns[0] - left, turned, per_sample_weights=columns[1], mode="sum")
    return done.round_().byte().view(warp.size[1], warp.size[0], channels).transpose(0, 1).numpy()


def _weights(start: float, step: float, count: int, length: int, shrink: float) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `count` output pixels along a side the input pixels that it is mixed of, int64 [count, taps], and their weights."""
    import torch

    k = math.ceil(shrink) if shrink > _MILD else 1
    at = start + step * torch.arange(count, dtype=torch.float64)[:, None]
    if k > 1:  # as in _samples
        spread = math.sqrt(max(step**2 - 1, 0) * (2 / (1 - k**-2)) / max(step**2, 1))
        at = at + step * spread * ((torch.arange(k, dtype=torch.float64) + 0.5) / k - 0.5)
    at = at.clamp(0, length - 1)
    first = at.floor()
    share = at - first
    return torch.cat((first, (first + 1).clamp(max=length - 1)), 1).long(), (torch.cat((1 - share, share), 1) / k).float()


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
                inside = _inside(outside + (start - margin), length, border)
                source.narrow(dim, start, margin).copy_(source.index_select(dim, inside + margin))
    return source


def _inside(places: torch.Tensor, length: int, border: Border) -> torch.Tensor:
    """Places along a side of `length` pixels, those beyond its ends brought back as the border says."""
    if border == "reflect" and length > 1:
        return ((places + (length - 1)) % (2 * (length - 1)) - (length - 1)).abs()
    return places.clamp(0, length - 1)


def _warped(images: torch.Tensor, warp: Warp, border: Border) -> torch.Tensor:
    count, channels, height, width = images.shape
    found = images.new_empty(count, *warp.size, channels)
    at_once = count
    if images.device.type == "cpu":
        at_once = max(1, _CHUNK // (channels * max(warp.size[0] * warp.size[1], height * width)))
    for start in range(0, count, at_once):
        piece = slice(start, start + at_once)
        values = _sampled(images[piece], warp.matrix[piece], warp, border)
        for channel in range(channels):  # four times faster on a CPU than all at once
            found[piece, ..., channel] = values[:, channel]
    return found.permute(0, 3, 1, 2)


def _sampled(images: torch.Tensor, matrices: torch.Tensor, warp: Warp, border: Border) -> torch.Tensor:
    """The whole numbers nearest to the interpolated values, float32 [B, C, *warp.size]."""
    from torch.nn.functional import grid_sample

    pictures = images.float().contiguous()
    shifted = _samples(matrices, warp)
    total = None
    for m in shifted:
        grid = _grid(m, warp, images.shape[-2:], border)
        values = grid_sample(pictures, grid, padding_mode="zeros" if border == "zero" else "border", align_corners=False)
        total = values if total is None else total.add_(values)
    assert total is not None
    return (total if len(shifted) == 1 else total.div_(len(shifted))).round_()


def _samples(m: torch.Tensor, warp: Warp) -> list[torch.Tensor]:
    """The matrices that are averaged: one, or, where pictures are shrunk, a square of them shifted by parts of an output pixel.

    Where s input pixels come to lie on one of the output, the k shifts of a direction are spread so that, together with the
    bilinear kernel (variance 1/6), they have the variance s^2 / 6 of the triangle of half-width s, which antialiased
    resizing uses in Pillow and torchvision. Where a sample is enlarged they coincide.
    """
    k = math.ceil(warp.shrink) if warp.shrink > _MILD else 1
    if k == 1:
        return [m]
    x, y = centre(warp.size)
    at = m[..., 0] * x + m[..., 1] * y + m[..., 2]
    scales = [(m[:, :2, j] - at[:, :2] / at[:, 2:] * m[:, 2:, j]).div(at[:, 2:]).square().sum(1) for j in (0, 1)]
    across, down = (((s - 1).clamp(min=0) * (2 / (1 - k**-2)) / s.clamp(min=1)).sqrt()[:, None] for s in scales)
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
        lengths = torch.tensor([float(width), float(height)], device=m.device).repeat(columns)
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
