"""Bundles of weight templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from weightinit.anatomy import Anatomy
from weightinit.files.bundle import Bundle
from weightinit.files.config import BundleConfig
from weightinit.files.locate import names
from weightinit.inherit.outside import collect
from weightinit.templates import checks
from weightinit.templates.config import TemplateConfig

__all__ = ["TemplateBundle", "as_bundle", "list_templates"]


class TemplateBundle(Bundle):
    """Weight templates, their trained scalers, and the tensors outside the blocks.

    Frozen; the tensors keep their stored dtype. Their names, in :attr:`tensors`:

    - ``templates.<kind>``: ``[N, *shape]``, of every kind in :attr:`template_config`;
    - ``scalers.<kind>``: ``[depth, N, *s]``, of the auxiliary model; may be missing for methods
      other than wave, whose scalers are closed forms;
    - ``fitted.<i>.<kind>``: ``[depth, N, *s]``, of ``config.fitted[i]``;
    - ``outside.<role>``: canonical tensors (patch embedding, positions, tokens, norms, head).

    Args:
        config: see :class:`BundleConfig`.
        tensors: by name.
        source: where they come from, with the resolved commit.
        card: text of README.md; default: generated on saving.

    Raises:
        BundleError: if a tensor is missing, unknown, or of another shape than the config says.

    Examples:
        >>> import tempfile, torch
        >>> from weightinit.files.config import BundleConfig
        >>> from weightinit.templates.bundle import TemplateBundle
        >>> from weightinit.templates.config import TemplateConfig
        >>> options = TemplateConfig.layers("share", 8, 1).to_dict()
        >>> sizes = {"d": 8, "h": 2, "k": 4, "m": 32}
        >>> config = BundleConfig("templates", "share", options, sizes, 1, "Apache-2.0")
        >>> shapes = {kind: [1, *spec["shape"]] for kind, spec in options["kinds"].items()}
        >>> tensors = {f"templates.{kind}": torch.ones(shape) for kind, shape in shapes.items()}
        >>> bundle = TemplateBundle(config, tensors)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bundle.save_pretrained(folder)
        ...     same = TemplateBundle.from_pretrained(folder)
        >>> same.tensors["templates.mlp.fc1.weight"].shape
        torch.Size([1, 32, 8])
    """

    kind: ClassVar[str] = "templates"

    @property
    def template_config(self) -> TemplateConfig:
        """The template set: its kinds, their number and shapes."""
        return checks.template_config(self.config)

    _check_tensors = staticmethod(checks.check_tensors)
    _check_expansion = staticmethod(checks.check_expansion)


def as_bundle(
    anatomy: Anatomy,
    config: TemplateConfig,
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    *,
    depth: int,
    licence: str,
    provenance: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> TemplateBundle:
    """Return a bundle of templates, and of what a model has outside its blocks.

    Args:
        anatomy: of the model.
        config: of the templates.
        tensors: ``templates.<kind>`` and ``scalers.<kind>``.
        parameters: the model's by name; those of its blocks may be missing.
        depth: of the auxiliary model.
        licence: SPDX identifier.
        provenance: of the training, plain JSON.
        dtype: of the bundle's tensors.
    """
    outside = {f"outside.{role}": v for role, v in collect(anatomy, parameters).items()}
    return TemplateBundle(
        BundleConfig(
            kind="templates",
            method=config.method,
            options=config.to_dict(),
            sizes=dict(anatomy.sizes),
            depth=depth,
            licence=licence,
            traits={"family": anatomy.family, **anatomy.traits, "depths": (depth,)},
            provenance=dict(provenance),
        ),
        {k: v.detach().cpu().to(dtype).clone() for k, v in {**tensors, **outside}.items()},
    )


def list_templates() -> list[str]:
    """Return the names of the template bundles that ship with weightinit.

    Examples:
        >>> from weightinit.templates.bundle import list_templates
        >>> isinstance(list_templates(), list)
        True
    """
    return names("templates")
