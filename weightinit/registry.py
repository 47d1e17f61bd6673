"""From the names of methods to the methods."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Literal, NamedTuple, get_args

from weightinit.errors import ProjectionError
from weightinit.inherit.method import Method

__all__ = ["METHODS", "MethodName", "Methods", "get_method", "list_methods"]

MethodName = Literal[
    "activation",
    "auto",
    "bert2bert",
    "bot",
    "expansions",
    "fine",
    "hypercloning",
    "lemon",
    "ligo",
    "net2net",
    "pith",
    "stacking",
    "subcloning",
    "weight_selection",
]


class Facts(NamedTuple):
    """Where a method lives, what it is for, and what it needs besides an ancestor."""

    place: str
    purpose: str
    needs: Literal["nothing", "batches", "batches, or nothing", "training", "a hypernetwork"]


#: By the name that ``method=`` takes.
METHODS: Mapping[MethodName, Facts] = {
    "activation": Facts(
        "weightinit.methods.activation.method:ActivationAware",
        "smaller: fitted to what the ancestor does on the batches",
        "batches",
    ),
    "auto": Facts(
        "weightinit.methods.auto:Auto",
        "any size: picks the method that the pair needs",
        "batches, or nothing",
    ),
    "bert2bert": Facts(
        "weightinit.methods.bert2bert:Bert2BERT", "larger: copied channels and blocks", "nothing"
    ),
    "bot": Facts(
        "weightinit.methods.bot:BoT", "any size: wavelets over all blocks at once", "nothing"
    ),
    "expansions": Facts(
        "weightinit.methods.expansions:Expansions",
        "larger: channels that nothing reads yet",
        "nothing",
    ),
    "fine": Facts(
        "weightinit.methods.fine.method:FINE",
        "deeper or shallower: shared singular vectors; fit_fine trains their spectra",
        "nothing",
    ),
    "hypercloning": Facts(
        "weightinit.methods.hypercloning:HyperCloning",
        "larger: copies that share their readers",
        "nothing",
    ),
    "lemon": Facts(
        "weightinit.methods.lemon:LEMON", "larger: without loss, by any width and depth", "nothing"
    ),
    "ligo": Facts(
        "weightinit.methods.ligo.method:LiGO",
        "larger: a linear operator, which fit_ligo trains",
        "training",
    ),
    "net2net": Facts(
        "weightinit.methods.net2net:Net2Net",
        "larger: copied channels and identity blocks",
        "nothing",
    ),
    "pith": Facts(
        "weightinit.hypernet.pith:PITH",
        "any size: projections that a hypernetwork generates",
        "a hypernetwork",
    ),
    "stacking": Facts("weightinit.methods.stacking:Stacking", "deeper: copied blocks", "nothing"),
    "subcloning": Facts(
        "weightinit.methods.subcloning:Subcloning",
        "smaller: the most active channels, heads and neurons",
        "batches",
    ),
    "weight_selection": Facts(
        "weightinit.methods.selection:WeightSelection",
        "smaller: a subset of channels and blocks",
        "nothing",
    ),
}


def get_method(method: MethodName | Method) -> Method:
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
    module, _, name = METHODS[method].place.partition(":")
    return getattr(import_module(module), name)()


class Methods(list[MethodName]):
    """Names of methods; printed, a table of what each is for and what it needs."""

    @property
    def needs(self) -> dict[MethodName, str]:
        """What each needs besides an ancestor, by name."""
        return {name: METHODS[name].needs for name in self}

    @property
    def purpose(self) -> dict[MethodName, str]:
        """What each is for, by name."""
        return {name: METHODS[name].purpose for name in self}

    def __str__(self) -> str:
        rows = [("method", "needs", "for")]
        rows += [(name, METHODS[name].needs, METHODS[name].purpose) for name in self]
        return "\n".join(f"{name:<17} {needs:<20} {purpose}" for name, needs, purpose in rows)


def list_methods() -> Methods:
    """Return the names of the methods that ``project_from(..., method=)`` takes, sorted.

    Examples:
        >>> "lemon" in list_methods()
        True
        >>> list_methods().needs["subcloning"]
        'batches'
        >>> print(list_methods())  # doctest: +ELLIPSIS
        method            needs                for
        activation        batches              smaller: fitted to what the ancestor does on ...
        auto              batches, or nothing  any size: picks the method that the pair needs
        ...
    """
    return Methods(get_args(MethodName))
