"""Mining: which examples are trained on. Importing this package registers every built-in part of the kind."""

from trainrun.parts.mining import ohem_rois  # noqa: F401
