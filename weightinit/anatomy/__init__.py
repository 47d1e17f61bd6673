"""A model seen as roles and axis patterns: nothing else knows a parameter name."""

from weightinit.anatomy.build import anatomy
from weightinit.anatomy.core import Anatomy, ParamSpec, Piece
from weightinit.anatomy.resample import resample_patch, resample_pos
from weightinit.anatomy.rules import Rule

__all__ = [
    "Anatomy",
    "ParamSpec",
    "Piece",
    "Rule",
    "anatomy",
    "resample_patch",
    "resample_pos",
]
