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
    from weightinit.api import (
        init_from_templates,
        init_mimetic,
        plan_mimetic,
        plan_templates,
    )
    from weightinit.bundle import TemplateBundle, list_templates
    from weightinit.config import TemplateConfig, TemplateKind
    from weightinit.methods.mimetic import Mimetic
    from weightinit.plan import Plan, Recipe
    from weightinit.report import Report
    from weightinit.training import ConstrainedModel, constrain, fit_scalers

_LAZY = {
    "Anatomy": "anatomy",
    "ParamSpec": "anatomy",
    "Rule": "anatomy",
    "anatomy": "anatomy",
    "init_from_templates": "api",
    "init_mimetic": "api",
    "plan_mimetic": "api",
    "plan_templates": "api",
    "TemplateBundle": "bundle",
    "list_templates": "bundle",
    "TemplateConfig": "config",
    "TemplateKind": "config",
    "Mimetic": "methods.mimetic",
    "Plan": "plan",
    "Recipe": "plan",
    "Report": "report",
    "ConstrainedModel": "training",
    "constrain": "training",
    "fit_scalers": "training",
}

__all__ = [
    "Anatomy",
    "AnatomyError",
    "BundleError",
    "ConstrainedModel",
    "Mimetic",
    "ParamSpec",
    "Plan",
    "ProjectionError",
    "Recipe",
    "Report",
    "Rule",
    "TemplateBundle",
    "TemplateConfig",
    "TemplateKind",
    "WeightInitError",
    "__version__",
    "anatomy",
    "constrain",
    "fit_scalers",
    "init",
    "init_from_templates",
    "init_mimetic",
    "kernels",
    "list_templates",
    "plan_mimetic",
    "plan_templates",
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
