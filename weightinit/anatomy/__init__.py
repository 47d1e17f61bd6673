"""A model seen as roles and axis patterns: nothing else knows a parameter name."""

from weightinit.anatomy.build import anatomy
from weightinit.anatomy.core import Anatomy
from weightinit.anatomy.difference import Difference
from weightinit.anatomy.labels import Labels, label_of
from weightinit.anatomy.parameter import Blocks, ParamSpec, Piece
from weightinit.anatomy.resample import resample_patch, resample_pos
from weightinit.anatomy.roles import Role, facts, scale_of, token_roles
from weightinit.anatomy.rules import Rule
from weightinit.anatomy.traits import Traits

__all__ = [
    "Anatomy",
    "Blocks",
    "Difference",
    "Labels",
    "ParamSpec",
    "Piece",
    "Role",
    "Rule",
    "Traits",
    "anatomy",
    "facts",
    "label_of",
    "resample_patch",
    "resample_pos",
    "scale_of",
    "token_roles",
]
