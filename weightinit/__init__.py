"""weightinit: fill a network of any size with weights that carry pretrained knowledge.

The names below are imported on first use: ``import weightinit`` costs torch and nothing more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from weightinit import init, kernels
from weightinit._version import __version__

# Not lazy: importing the package of this name would hide the function.
from weightinit.anatomy import anatomy
from weightinit.errors import AnatomyError, BundleError, ProjectionError, WeightInitError

if TYPE_CHECKING:
    from weightinit.anatomy import Anatomy, ParamSpec, Rule
    from weightinit.ancestor.ancestor import Ancestor
    from weightinit.api import (
        init_from_hypernet,
        init_from_templates,
        init_mimetic,
        plan_hypernet,
        plan_mimetic,
        plan_projection,
        plan_templates,
        project_from,
    )
    from weightinit.hypernet.config import HyperConfig
    from weightinit.hypernet.files import HyperNetwork
    from weightinit.hypernet.pith import PITH
    from weightinit.methods.activation.method import ActivationAware
    from weightinit.methods.bert2bert import Bert2BERT
    from weightinit.methods.bot import BoT
    from weightinit.methods.each import EachAxis
    from weightinit.methods.expansions import Expansions
    from weightinit.methods.fine.fit import fit_fine
    from weightinit.methods.fine.method import FINE
    from weightinit.methods.halfway import ShrinkThenGrow
    from weightinit.methods.hypercloning import HyperCloning
    from weightinit.methods.lemon import LEMON
    from weightinit.methods.ligo.fit import fit_ligo
    from weightinit.methods.ligo.method import LiGO
    from weightinit.methods.mimetic import Mimetic
    from weightinit.methods.net2net import Net2Net
    from weightinit.methods.selection import WeightSelection
    from weightinit.methods.stacking import Stacking
    from weightinit.methods.subcloning import Subcloning
    from weightinit.plan import Plan, Recipe
    from weightinit.registry import list_methods
    from weightinit.report import Report
    from weightinit.templates.bundle import TemplateBundle, list_templates
    from weightinit.templates.config import TemplateConfig
    from weightinit.templates.constrain import constrain
    from weightinit.templates.constrained import ConstrainedModel
    from weightinit.templates.extract import extract_templates
    from weightinit.templates.fit import fit_scalers
    from weightinit.templates.kinds import TemplateKind
    from weightinit.templates.nested import NestedModel, Size, Sizes

_LAZY = {
    "Anatomy": "anatomy",
    "ParamSpec": "anatomy",
    "Rule": "anatomy",
    "Ancestor": "ancestor.ancestor",
    "init_from_hypernet": "api",
    "init_from_templates": "api",
    "init_mimetic": "api",
    "plan_hypernet": "api",
    "plan_mimetic": "api",
    "plan_projection": "api",
    "plan_templates": "api",
    "project_from": "api",
    "HyperConfig": "hypernet.config",
    "HyperNetwork": "hypernet.files",
    "PITH": "hypernet.pith",
    "ActivationAware": "methods.activation.method",
    "Bert2BERT": "methods.bert2bert",
    "BoT": "methods.bot",
    "EachAxis": "methods.each",
    "Expansions": "methods.expansions",
    "FINE": "methods.fine.method",
    "fit_fine": "methods.fine.fit",
    "ShrinkThenGrow": "methods.halfway",
    "HyperCloning": "methods.hypercloning",
    "LEMON": "methods.lemon",
    "LiGO": "methods.ligo.method",
    "fit_ligo": "methods.ligo.fit",
    "Mimetic": "methods.mimetic",
    "Net2Net": "methods.net2net",
    "WeightSelection": "methods.selection",
    "Stacking": "methods.stacking",
    "Subcloning": "methods.subcloning",
    "Plan": "plan",
    "Recipe": "plan",
    "list_methods": "registry",
    "Report": "report",
    "TemplateBundle": "templates.bundle",
    "list_templates": "templates.bundle",
    "TemplateConfig": "templates.config",
    "TemplateKind": "templates.kinds",
    "ConstrainedModel": "templates.constrained",
    "constrain": "templates.constrain",
    "extract_templates": "templates.extract",
    "fit_scalers": "templates.fit",
    "NestedModel": "templates.nested",
    "Size": "templates.nested",
    "Sizes": "templates.nested",
}

__all__ = [
    "FINE",
    "LEMON",
    "PITH",
    "ActivationAware",
    "Anatomy",
    "AnatomyError",
    "Ancestor",
    "Bert2BERT",
    "BoT",
    "BundleError",
    "ConstrainedModel",
    "EachAxis",
    "Expansions",
    "HyperCloning",
    "HyperConfig",
    "HyperNetwork",
    "LiGO",
    "Mimetic",
    "NestedModel",
    "Net2Net",
    "ParamSpec",
    "Plan",
    "ProjectionError",
    "Recipe",
    "Report",
    "Rule",
    "ShrinkThenGrow",
    "Size",
    "Sizes",
    "Stacking",
    "Subcloning",
    "TemplateBundle",
    "TemplateConfig",
    "TemplateKind",
    "WeightInitError",
    "WeightSelection",
    "__version__",
    "anatomy",
    "constrain",
    "extract_templates",
    "fit_fine",
    "fit_ligo",
    "fit_scalers",
    "init",
    "init_from_hypernet",
    "init_from_templates",
    "init_mimetic",
    "kernels",
    "list_methods",
    "list_templates",
    "plan_hypernet",
    "plan_mimetic",
    "plan_projection",
    "plan_templates",
    "project_from",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'weightinit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"weightinit.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
