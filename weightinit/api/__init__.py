"""The model-level calls: one line fills a model in place, and a plan shows it first.

All of them take these arguments:

- ``generator``: source of all random draws, from which one number is drawn; the global generator is
  never touched.
- ``keep``: parameters that stay as they are, by name, by the start of one, or by role (``"head"``,
  ``"pos"``); what is named needs no explanation.
- ``rules``: a list of :class:`weightinit.Rule`, for parameters that no built-in one explains; see
  :func:`weightinit.anatomy`.
- ``unexplained``: what becomes of parameters that no rule explains and ``keep`` does not name:
  ``"raise"``, or ``"keep"`` them as they are.

The model may be on any device; a meta model is materialised on the CPU. Fill it before the
optimizer is built. After an error it is as it was.

Each ``plan_*`` takes the arguments of its verb and raises its errors, but for values that are not
finite, which :meth:`Plan.validate` finds.
"""

from weightinit.api.fill import init_from_hypernet, init_from_templates, init_mimetic, project_from
from weightinit.api.plans import (
    DEFAULT_TEMPLATES,
    AncestorLike,
    Unexplained,
    plan_hypernet,
    plan_mimetic,
    plan_projection,
    plan_templates,
)

__all__ = [
    "DEFAULT_TEMPLATES",
    "AncestorLike",
    "Unexplained",
    "init_from_hypernet",
    "init_from_templates",
    "init_mimetic",
    "plan_hypernet",
    "plan_mimetic",
    "plan_projection",
    "plan_templates",
    "project_from",
]
