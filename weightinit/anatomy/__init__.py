"""A model seen as roles and axis patterns: nothing else knows a parameter name."""

import sys
from types import ModuleType

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


class _Callable(ModuleType):
    """``weightinit.anatomy`` is a function to users, and the import system makes it this module."""

    __call__ = staticmethod(anatomy)


sys.modules[__name__].__class__ = _Callable
