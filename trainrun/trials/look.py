"""What a trial finds by looking at a recipe, as a document for programs and as lines for people."""

from __future__ import annotations

from typing import Any, Protocol


class Look(Protocol):
    """What was seen; a look that can be drawn has `png(file)` too, which writes one PNG file."""

    def document(self) -> Any:
        """The findings as JSON values, in SI units."""

    def lines(self, width: int) -> str:
        """The findings for people, at most `width` columns wide."""
