"""The errors of weightinit: every message says what is wrong, what is allowed, and what to do."""

__all__ = ["AnatomyError", "BundleError", "ProjectionError", "WeightInitError"]


class WeightInitError(RuntimeError):
    """Base class: whatever weightinit raises on a user's error is one of these."""


class AnatomyError(WeightInitError):
    """A model's parameters are not explained: unmatched, ambiguous or of inconsistent sizes."""


class ProjectionError(WeightInitError):
    """A source does not fit a target: another family, head count, size, or values not finite."""


class BundleError(WeightInitError):
    """A file or folder is not a sound bundle: format, limits, integrity or schema."""
