"""Sphinx's roles in docstrings, such as :func:`weightinit.anatomy`, as links of the site."""

import re
from typing import Any

import griffe

import weightinit

ROLE = re.compile(r":(class|func|meth|mod|attr|data|math):`~?([^`]+)`")


def _linked(role: re.Match[str]) -> str:
    kind, text = role.groups()
    name = text.removeprefix("weightinit.")
    if kind in ("attr", "math") or name.partition(".")[0] not in weightinit.__all__:
        return f"`{text}`"
    # A package of this name stands in the function's way.
    where = "anatomy.build.anatomy" if name == "anatomy" else name
    return f"[`{name}`][weightinit.{where}]"


class Roles(griffe.Extension):
    """Rewrites every docstring that the site shows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the roles of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_linked, obj.docstring.value)
