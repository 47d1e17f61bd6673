"""From the names of methods to the methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from weightinit.errors import ProjectionError
from weightinit.inherit.method import Method

__all__ = ["METHODS", "get_method", "list_methods"]

#: From the name that ``method=`` takes to where its options live.
METHODS: Mapping[str, str] = {
    "activation": "weightinit.methods.activation.method:ActivationAware",
    "auto": "weightinit.methods.auto:Auto",
    "bert2bert": "weightinit.methods.bert2bert:Bert2BERT",
    "bot": "weightinit.methods.bot:BoT",
    "fine": "weightinit.methods.fine.method:FINE",
    "expansions": "weightinit.methods.expansions:Expansions",
    "hypercloning": "weightinit.methods.hypercloning:HyperCloning",
    "lemon": "weightinit.methods.lemon:LEMON",
    "ligo": "weightinit.methods.ligo.method:LiGO",
    "net2net": "weightinit.methods.net2net:Net2Net",
    "pith": "weightinit.hypernet.pith:PITH",
    "stacking": "weightinit.methods.stacking:Stacking",
    "subcloning": "weightinit.methods.subcloning:Subcloning",
    "weight_selection": "weightinit.methods.selection:WeightSelection",
}


def get_method(method: str | Method) -> Method:
    """Return a method by name with its default options, or the object itself."""
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "plan", None)):
            raise ProjectionError(
                f"method={method!r} is no method: pass one of {sorted(METHODS)}, or an object of "
                "its options, such as wi.LEMON()"
            )
        return method
    if method not in METHODS:
        raise ProjectionError(f"method={method!r} is unknown: use one of {sorted(METHODS)}")
    module, _, name = METHODS[method].partition(":")
    return getattr(import_module(module), name)()


def list_methods() -> list[str]:
    """Return the names of the methods that ``project_from(..., method=)`` takes.

    Examples:
        >>> "lemon" in list_methods()
        True
    """
    return sorted(METHODS)
