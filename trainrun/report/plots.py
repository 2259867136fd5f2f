"""Plots as PNG files, drawn by Matplotlib, which need not be installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainrun.errors import UserError


def blank(width: float, height: float) -> Any:
    """An empty Matplotlib figure, in inches; raises UserError where Matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--png needs Matplotlib: pip install 'trainrun[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, file: Path) -> None:
    """Write a figure as a PNG file, whatever the file is called; raises UserError where it cannot be written."""
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}; choose another --png") from error
