"""A timm model of any size, built and filled in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from weightinit.api import init_from_hypernet, init_from_templates, project_from
from weightinit.errors import ProjectionError
from weightinit.hypernet.files import HyperNetwork
from weightinit.starts import kind_of
from weightinit.templates.bundle import TemplateBundle

if TYPE_CHECKING:
    from weightinit.api import AncestorLike
    from weightinit.hypernet.pith import HypernetLike

__all__ = ["create_model"]


def create_model(
    name: str,
    start: AncestorLike | TemplateBundle | HypernetLike | None = None,
    *,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Return a timm model with weights that carry knowledge: built on meta, filled on the CPU.

    Args:
        name: name of a timm model.
        start: templates or a hypernetwork (a built-in name, a folder, ``"org/name@revision"``, or
            an object), or else the ancestor of :func:`weightinit.project_from`; None takes the
            shipped templates.
        options: further arguments of the call that fills it: ``{"method": "lemon"}``.
        **kwargs: arguments of ``timm.create_model``, such as ``depth=9``.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if ``start`` cannot be had or is not sound.
        ProjectionError: if it does not fit the model, or timm cannot build that.

    Examples:
        >>> import weightinit as wi
        >>> model = wi.create_model("vit_tiny_patch16_224", "cifar10-w64", depth=2, num_classes=5)
        >>> next(model.parameters()).device
        device(type='cpu')
    """
    import timm
    import torch

    if kwargs.get("pretrained"):
        raise ProjectionError("pretrained=True asks for timm's own weights: use timm.create_model")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, **kwargs)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ProjectionError(f"timm cannot build {name!r} with {kwargs}: {error}") from error
    options, kind = options or {}, TemplateBundle.kind if start is None else kind_of(start)
    if kind == TemplateBundle.kind:
        return init_from_templates(model, start, **options)  # type: ignore[arg-type]
    if kind == HyperNetwork.kind:
        return init_from_hypernet(model, start, **options)  # type: ignore[arg-type]
    return project_from(start, model, **options)  # type: ignore[arg-type]
