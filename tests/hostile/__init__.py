"""Hostile bundles: one builder per attack, each with the words that the refusal must contain."""

from hostile import config, files, header, tensors  # noqa: F401
from hostile.base import ATTACKS

__all__ = ["ATTACKS"]
