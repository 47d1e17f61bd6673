"""What an object or a name stands for: templates, a hypernetwork, or an ancestor."""

from __future__ import annotations

import difflib
import os

from weightinit.errors import ProjectionError
from weightinit.files.locate import kind_of_bundle, names
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.templates.bundle import TemplateBundle

__all__ = ["kind_of"]


def kind_of(start: object) -> str:
    """Return the kind of bundle that an object or a name stands for, or ``"ancestor"``.

    Raises:
        ProjectionError: for a name that is none, and almost that of a bundle that ships.
    """
    if isinstance(start, (TemplateBundle, HyperNetwork)):
        return start.kind
    if isinstance(start, GraphHyperNetwork):
        return HyperNetwork.kind
    if not isinstance(start, (str, os.PathLike)):
        return "ancestor"
    if (kind := kind_of_bundle(start)) in (TemplateBundle.kind, HyperNetwork.kind):
        return kind
    import timm

    text = os.fspath(start)
    close = difflib.get_close_matches(text, names(), n=1)
    if close and not (os.path.exists(text) or timm.is_model(text)):  # noqa: PTH110
        raise ProjectionError(
            f"there is no start {text!r}: did you mean {close[0]!r}? Pass one of {names()}, or an "
            "ancestor as wi.project_from takes it"
        )
    return "ancestor"
