"""Mining: which of the examples at hand are trained on."""

from trainrun.parts.mining import ohem_rois

__all__ = ["ohem_rois"]
