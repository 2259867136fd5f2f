"""Where the pixels of a transformed picture come from: what a geometric augmentation returns instead of pictures.

A geometric part takes (height, width) of the pictures and a Draw, and returns a `Move` (flips and whole pixels) or a
`Warp` (anything else). Both say for each sample which point of the input every pixel of the output shows; a pixel's
coordinates are those of its centre, (0, 0) is the first pixel's. Parts that stand together in a list are joined by
`then` and act as one: pixels are computed once, and what one part moves out of the picture another can bring back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Union

if TYPE_CHECKING:
    import torch

Border = Literal["zero", "reflect", "edge"]


@dataclass(frozen=True)
class Move:
    """Flips and shifts by whole pixels: output row r shows input row `y + down * r`, and so for columns with `x` and `right`.

    size: height and width of the output. y, x: int64 [B], or one number for all. down, right: int64 [B] of 1 and -1, or 1 for all.
    margin: by how many pixels at most the output reaches beyond the input on any side, over all samples.
    """

    size: tuple[int, int]
    y: torch.Tensor | int = 0
    x: torch.Tensor | int = 0
    down: torch.Tensor | int = 1
    right: torch.Tensor | int = 1
    margin: int = 0

    def warp(self, like: torch.Tensor) -> Warp:
        """The same as matrices, on the device and with the length of `like` [B]."""
        import torch

        def full(value: torch.Tensor | int) -> torch.Tensor:
            return torch.as_tensor(value, dtype=torch.float64, device=like.device).expand(len(like))

        return Warp(self.size, matrix((full(self.right), 0.0, full(self.x)), (0.0, full(self.down), full(self.y))), aligned=True)

    def to(self, device: torch.device) -> Move:
        """The same on another device."""
        y, x, down, right = (value if isinstance(value, int) else value.to(device, non_blocking=True) for value in (self.y, self.x, self.down, self.right))
        return Move(self.size, y, x, down, right, self.margin)


@dataclass(frozen=True)
class Warp:
    """Any projective map: `matrix` @ (x, y, 1) of an output pixel is, up to scale, (x, y, 1) of the input point that it shows.

    size: height and width of the output. matrix: float64 [B, 3, 3]. shrink: how many input pixels at most come to lie on
    one output pixel in either direction, over all samples; below 1 is an enlargement. projective: whether any last row
    is other than (0, 0, 1). aligned: whether all matrices only shift, scale and mirror, so that rows stay rows and columns columns,
    which are then filtered one after the other.
    """

    size: tuple[int, int]
    matrix: torch.Tensor
    shrink: float = 1.0
    projective: bool = False
    aligned: bool = False

    def to(self, device: torch.device) -> Warp:
        """The same on another device."""
        return replace(self, matrix=self.matrix.to(device, non_blocking=True))


def then(first: Move | Warp, second: Move | Warp, like: torch.Tensor) -> Move | Warp:
    """First one, then the other; `like` is a tensor [B] on their device."""
    if isinstance(first, Move) and isinstance(second, Move):
        (y, down), (x, right) = _along(first.y, first.down, second.y, second.down), _along(first.x, first.right, second.x, second.right)
        return Move(second.size, y, x, down, right, first.margin + second.margin)
    a, b = (m.warp(like) if isinstance(m, Move) else m for m in (first, second))
    return Warp(b.size, product(a.matrix, b.matrix), a.shrink * b.shrink, a.projective or b.projective, a.aligned and b.aligned)


Places = Union["torch.Tensor", int]


def _along(start: Places, step: Places, then_start: Places, then_step: Places) -> tuple[Places, Places]:
    """Two moves along one axis as one; most are no move at all, and a tensor costs more than looking whether it is needed."""
    if isinstance(step, int) and step == 1:
        if isinstance(start, int) and start == 0:
            return then_start, then_step
        return start + then_start, then_step
    return start + step * then_start, step * then_step


def product(*matrices: torch.Tensor) -> torch.Tensor:
    """The matrix product of [B, 3, 3] tensors.

    Written out, because the sums of a batched product may be taken in another order for another B.
    """
    a = matrices[0]
    for b in matrices[1:]:
        a = a[..., :1] * b[:, :1] + a[..., 1:2] * b[:, 1:2] + a[..., 2:] * b[:, 2:]
    return a


Row = tuple["torch.Tensor | float", "torch.Tensor | float", "torch.Tensor | float"]


def matrix(*rows: Row) -> torch.Tensor:
    """float64 [B, 3, 3] of rows of numbers or tensors [B], at least one of them a tensor; the third row is (0, 0, 1) where none is given."""
    import torch

    entries = [entry for row in (*rows, (0.0, 0.0, 1.0))[:3] for entry in row]
    like = next(entry for entry in entries if isinstance(entry, torch.Tensor))
    columns = [e.double() if isinstance(e, torch.Tensor) else torch.full_like(like, e, dtype=torch.float64) for e in entries]
    return torch.stack(columns, 1).view(-1, 3, 3)


def centre(shape: tuple[int, int]) -> tuple[float, float]:
    """x and y of the middle of a picture of `shape` (height, width)."""
    return (shape[1] - 1) / 2, (shape[0] - 1) / 2


Number = Union["torch.Tensor", float]


def about_centre(
    shape: tuple[int, int], first: tuple[Number, Number], second: tuple[Number, Number], shift: tuple[Number, Number] = (0.0, 0.0)
) -> torch.Tensor:
    """The map p -> L (p - centre - shift) + centre as float64 [B, 3, 3], L of two rows of numbers or tensors [B]."""
    x, y = centre(shape)
    to = [c - row[0] * (x + shift[0]) - row[1] * (y + shift[1]) for c, row in ((x, first), (y, second))]
    return matrix((*first, to[0]), (*second, to[1]))


def inverse(m: torch.Tensor) -> torch.Tensor:
    """The inverse of [B, 3, 3] matrices up to scale (the adjugate), which as a projective map is the same."""
    import torch

    a, b, c, d, e, f, g, h, i = m.flatten(1).unbind(1)
    rows = (e * i - f * h, c * h - b * i, b * f - c * e, f * g - d * i, a * i - c * g, c * d - a * f, d * h - e * g, b * g - a * h, a * e - b * d)
    return torch.stack(rows, 1).view(-1, 3, 3)


def between(numbers: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Uniform numbers in [0, 1) to uniform numbers in [low, high), float64."""
    return low + (high - low) * numbers.double()


def inside(places: torch.Tensor, length: int, border: Border) -> torch.Tensor:
    """Places along a side of `length` pixels, those beyond its ends brought back as the border says."""
    if border == "reflect" and length > 1:
        return ((places + (length - 1)) % (2 * (length - 1)) - (length - 1)).abs()
    return places.clamp(0, length - 1)
