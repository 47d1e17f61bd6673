"""weightinit: fill a network of any size with weights that carry pretrained knowledge.

Public names are imported on first use: ``import weightinit`` costs torch and nothing more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from weightinit import init as init
from weightinit import kernels as kernels
from weightinit._version import __version__ as __version__

# Not lazy: importing the package of this name would hide the function.
from weightinit.anatomy import anatomy as anatomy
from weightinit.errors import AnatomyError as AnatomyError
from weightinit.errors import BundleError as BundleError
from weightinit.errors import ProjectionError as ProjectionError
from weightinit.errors import WeightInitError as WeightInitError

if TYPE_CHECKING:
    from weightinit.anatomy import Anatomy as Anatomy
    from weightinit.anatomy import ParamSpec as ParamSpec
    from weightinit.anatomy import Rule as Rule
    from weightinit.ancestor.ancestor import Ancestor as Ancestor
    from weightinit.api import init_from_hypernet as init_from_hypernet
    from weightinit.api import init_from_templates as init_from_templates
    from weightinit.api import init_mimetic as init_mimetic
    from weightinit.api import plan_hypernet as plan_hypernet
    from weightinit.api import plan_mimetic as plan_mimetic
    from weightinit.api import plan_projection as plan_projection
    from weightinit.api import plan_templates as plan_templates
    from weightinit.api import project_from as project_from
    from weightinit.comparison.compare import compare as compare
    from weightinit.comparison.outcome import Comparison as Comparison
    from weightinit.create import create_model as create_model
    from weightinit.hypernet.config import HyperConfig as HyperConfig
    from weightinit.hypernet.files import HyperNetwork as HyperNetwork
    from weightinit.hypernet.pith import PITH as PITH
    from weightinit.methods.activation.method import ActivationAware as ActivationAware
    from weightinit.methods.bert2bert import Bert2BERT as Bert2BERT
    from weightinit.methods.bot import BoT as BoT
    from weightinit.methods.each import EachAxis as EachAxis
    from weightinit.methods.expansions import Expansions as Expansions
    from weightinit.methods.fine.method import FINE as FINE
    from weightinit.methods.fine.method import fit_fine as fit_fine
    from weightinit.methods.halfway import ShrinkThenGrow as ShrinkThenGrow
    from weightinit.methods.hypercloning import HyperCloning as HyperCloning
    from weightinit.methods.lemon import LEMON as LEMON
    from weightinit.methods.ligo.method import LiGO as LiGO
    from weightinit.methods.ligo.method import fit_ligo as fit_ligo
    from weightinit.methods.mimetic import Mimetic as Mimetic
    from weightinit.methods.net2net import Net2Net as Net2Net
    from weightinit.methods.selection import WeightSelection as WeightSelection
    from weightinit.methods.stacking import Stacking as Stacking
    from weightinit.methods.subcloning import Subcloning as Subcloning
    from weightinit.plan import Plan as Plan
    from weightinit.recipes import Recipe as Recipe
    from weightinit.registry import list_methods as list_methods
    from weightinit.report import Report as Report
    from weightinit.templates.bundle import TemplateBundle as TemplateBundle
    from weightinit.templates.bundle import list_templates as list_templates
    from weightinit.templates.config import TemplateConfig as TemplateConfig
    from weightinit.templates.constrain import constrain as constrain
    from weightinit.templates.constrained import ConstrainedModel as ConstrainedModel
    from weightinit.templates.extract import extract_templates as extract_templates
    from weightinit.templates.fit import fit_scalers as fit_scalers
    from weightinit.templates.kinds import TemplateKind as TemplateKind
    from weightinit.templates.nested import NestedModel as NestedModel
    from weightinit.templates.sizes import Size as Size
    from weightinit.templates.sizes import Sizes as Sizes

#: Where the lazy names live.
_LAZY = {
    name: module
    for module, names in {
        "anatomy": "Anatomy ParamSpec Rule",
        "ancestor.ancestor": "Ancestor",
        "api": "init_from_hypernet init_from_templates init_mimetic plan_hypernet plan_mimetic "
        "plan_projection plan_templates project_from",
        "comparison.compare": "compare",
        "comparison.outcome": "Comparison",
        "create": "create_model",
        "hypernet.config": "HyperConfig",
        "hypernet.files": "HyperNetwork",
        "hypernet.pith": "PITH",
        "methods.activation.method": "ActivationAware",
        "methods.bert2bert": "Bert2BERT",
        "methods.bot": "BoT",
        "methods.each": "EachAxis",
        "methods.expansions": "Expansions",
        "methods.fine.method": "FINE fit_fine",
        "methods.halfway": "ShrinkThenGrow",
        "methods.hypercloning": "HyperCloning",
        "methods.lemon": "LEMON",
        "methods.ligo.method": "LiGO fit_ligo",
        "methods.mimetic": "Mimetic",
        "methods.net2net": "Net2Net",
        "methods.selection": "WeightSelection",
        "methods.stacking": "Stacking",
        "methods.subcloning": "Subcloning",
        "plan": "Plan",
        "recipes": "Recipe",
        "registry": "list_methods",
        "report": "Report",
        "templates.bundle": "TemplateBundle list_templates",
        "templates.config": "TemplateConfig",
        "templates.constrain": "constrain",
        "templates.constrained": "ConstrainedModel",
        "templates.extract": "extract_templates",
        "templates.fit": "fit_scalers",
        "templates.kinds": "TemplateKind",
        "templates.nested": "NestedModel",
        "templates.sizes": "Size Sizes",
    }.items()
    for name in names.split()
}

_EAGER = "AnatomyError BundleError ProjectionError WeightInitError __version__ anatomy init kernels"
__all__ = sorted([*_EAGER.split(), *_LAZY])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'weightinit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"weightinit.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
