"""weightinit: fill a network of any size with weights that carry pretrained knowledge.

The names below are imported on first use: ``import weightinit`` costs torch and nothing more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from weightinit import init, kernels
from weightinit._version import __version__
from weightinit.errors import AnatomyError, BundleError, ProjectionError, WeightInitError

if TYPE_CHECKING:
    from weightinit.anatomy import Anatomy, ParamSpec, Rule, anatomy
    from weightinit.ancestor import Ancestor
    from weightinit.api import (
        init_from_templates,
        init_mimetic,
        plan_mimetic,
        plan_templates,
    )
    from weightinit.bundle import TemplateBundle, list_templates
    from weightinit.config import TemplateConfig, TemplateKind
    from weightinit.generate import PITH, init_from_hypernet, plan_hypernet
    from weightinit.hypernet.config import HyperConfig
    from weightinit.hypernet.files import HyperNetwork
    from weightinit.methods.activation import ActivationAware
    from weightinit.methods.bert2bert import Bert2BERT
    from weightinit.methods.bot import BoT
    from weightinit.methods.each import EachAxis
    from weightinit.methods.expansions import Expansions
    from weightinit.methods.extract import extract_templates
    from weightinit.methods.fine import FINE
    from weightinit.methods.halfway import ShrinkThenGrow
    from weightinit.methods.hypercloning import HyperCloning
    from weightinit.methods.lemon import LEMON
    from weightinit.methods.ligo import LiGO
    from weightinit.methods.mimetic import Mimetic
    from weightinit.methods.net2net import Net2Net
    from weightinit.methods.selection import WeightSelection
    from weightinit.methods.stacking import Stacking
    from weightinit.methods.subcloning import Subcloning
    from weightinit.plan import Plan, Recipe
    from weightinit.project import plan_projection, project_from
    from weightinit.report import Report
    from weightinit.training import ConstrainedModel, constrain, fit_scalers
    from weightinit.training.fine import fit_fine
    from weightinit.training.ligo import fit_ligo

_LAZY = {
    "Anatomy": "anatomy",
    "ParamSpec": "anatomy",
    "Rule": "anatomy",
    "anatomy": "anatomy",
    "Ancestor": "ancestor",
    "init_from_templates": "api",
    "init_mimetic": "api",
    "plan_mimetic": "api",
    "plan_templates": "api",
    "TemplateBundle": "bundle",
    "list_templates": "bundle",
    "TemplateConfig": "config",
    "TemplateKind": "config",
    "Mimetic": "methods.mimetic",
    "ActivationAware": "methods.activation",
    "Bert2BERT": "methods.bert2bert",
    "BoT": "methods.bot",
    "EachAxis": "methods.each",
    "extract_templates": "methods.extract",
    "FINE": "methods.fine",
    "LiGO": "methods.ligo",
    "Expansions": "methods.expansions",
    "ShrinkThenGrow": "methods.halfway",
    "HyperCloning": "methods.hypercloning",
    "LEMON": "methods.lemon",
    "Net2Net": "methods.net2net",
    "Stacking": "methods.stacking",
    "Subcloning": "methods.subcloning",
    "WeightSelection": "methods.selection",
    "HyperConfig": "hypernet.config",
    "HyperNetwork": "hypernet.files",
    "Plan": "plan",
    "Recipe": "plan",
    "plan_projection": "project",
    "project_from": "project",
    "PITH": "generate",
    "init_from_hypernet": "generate",
    "plan_hypernet": "generate",
    "Report": "report",
    "ConstrainedModel": "training",
    "constrain": "training",
    "fit_scalers": "training",
    "fit_fine": "training.fine",
    "fit_ligo": "training.ligo",
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
    "Net2Net",
    "ParamSpec",
    "Plan",
    "ProjectionError",
    "Recipe",
    "Report",
    "Rule",
    "ShrinkThenGrow",
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
