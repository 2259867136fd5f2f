"""Where the boxes of a picture come to lie when it is moved or warped, and which of them are still to be seen.

A `Move` or a `Warp` counts pixels by their centres, boxes by edges: the centre of the first pixel is 0 to the one and 0.5 to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainrun.parts.augmentations.geometry import Move, Places, Warp, inverse

if TYPE_CHECKING:
    import torch

_HORIZON = 1e-6  # of a box's distance from it at its centre; what lies closer is cut off


def follow(motion: Move | Warp, boxes: torch.Tensor) -> torch.Tensor:
    """The boxes of one picture after its motion, that of a batch of one: [n, 4] to [n, 4], x0, y0, x1, y1 of edges, in float64 inside.

    A `Move` takes boxes to boxes. Under a `Warp` the four corners are moved and the smallest upright box around them is taken, as in
    torchvision's v2 transforms: a box that is turned grows by up to the share of its corners that hold no object, sqrt(2) a side at 45 degrees. Of a box
    that reaches behind the horizon of a projective map, which no picture shows, the part on the side of its centre is taken. Boxes may
    come to lie outside the new picture: see `visible`.
    """
    many = [v for v in ((motion.matrix,) if isinstance(motion, Warp) else (motion.x, motion.y, motion.right, motion.down)) if not isinstance(v, int)]
    if any(len(value) != 1 for value in many):
        raise ValueError(f"a motion of {max(map(len, many))} pictures; boxes are those of one")
    exact = boxes.double()
    return (_moved(motion, exact) if isinstance(motion, Move) else _warped(motion, exact)).to(boxes.dtype)


def _moved(move: Move, boxes: torch.Tensor) -> torch.Tensor:
    import torch

    x0, y0, x1, y1 = boxes.unbind(1)
    (x0, x1), (y0, y1) = _along(x0, x1, move.x, move.right), _along(y0, y1, move.y, move.down)
    return torch.stack((x0, y0, x1, y1), 1)


def _along(low: torch.Tensor, high: torch.Tensor, start: Places, step: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Two edges along an axis where output pixel r shows the input's `start + step * r`."""
    import torch

    if isinstance(step, int) and step == 1:
        return low - start, high - start
    mirrored, forward = (start + 1 - high, start + 1 - low), torch.as_tensor(step, device=low.device) > 0
    return torch.where(forward, low - start, mirrored[0]), torch.where(forward, high - start, mirrored[1])


def _warped(warp: Warp, boxes: torch.Tensor) -> torch.Tensor:
    import torch

    to_output = inverse(warp.matrix)[0]
    x0, y0, x1, y1 = (boxes - 0.5).unbind(1)
    one = torch.ones_like(x0)
    corners = torch.stack([torch.stack((x, y, one), 1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], 1)
    moved = corners @ to_output.T  # [n, 4, 3]
    depth = moved[..., 2].mean(1, keepdim=True)  # that of the centre, because it is linear
    moved = moved / depth[..., None]  # so what lies in front is positive, and the centre is at 1
    # An edge that crosses the horizon ends shortly before it.
    ahead = moved.roll(-1, 1)
    share = (_HORIZON - moved[..., 2]) / (ahead[..., 2] - moved[..., 2])
    crossing = moved + share.nan_to_num()[..., None] * (ahead - moved)
    crosses = (moved[..., 2] >= _HORIZON) != (ahead[..., 2] >= _HORIZON)
    points = torch.cat((moved, crossing), 1)
    seen = torch.cat((moved[..., 2] >= _HORIZON, crosses), 1)[..., None]
    places = points[..., :2] / points[..., 2:] + 0.5
    least = torch.where(seen, places, torch.inf).amin(1)
    most = torch.where(seen, places, -torch.inf).amax(1)
    return torch.cat((least, most), 1)


def visible(before: torch.Tensor, after: torch.Tensor, size: tuple[int, int], least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The moved boxes cut at the edges of the new picture of `size` (height, width), [n, 4], and which of them to keep, bool [n].

    A box goes where less than the share `least` of its moved area is left, and where a side of less than a pixel is left unless it was no
    longer `before`: so boxes that are not moved all stay. before, after: [n, 4], as given to and returned by `follow`.
    """
    import torch

    height, width = size
    inside = torch.stack([side.clamp(0, end) for side, end in zip(after.unbind(1), (width, height) * 2, strict=True)], 1)
    sides = inside[:, 2:] - inside[:, :2]
    enough = (sides >= (before[:, 2:] - before[:, :2]).clamp(max=1)).all(1) & (sides > 0).all(1)
    share = sides.double().prod(1) / (after[:, 2:] - after[:, :2]).double().prod(1)
    return inside, enough & (share >= least)
