"""The model-level calls that fill a model in place; each commits its plan, see ``plans.py``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from weightinit.anatomy import Rule
from weightinit.api.plans import (
    AncestorLike,
    Unexplained,
    plan_hypernet,
    plan_mimetic,
    plan_projection,
    plan_templates,
)
from weightinit.hypernet.pith import HypernetLike
from weightinit.inherit.method import Method
from weightinit.methods.mimetic import Mimetic
from weightinit.registry import MethodName
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.compose import Scalers

__all__ = [
    "init_from_hypernet",
    "init_from_templates",
    "init_mimetic",
    "project_from",
]

M = TypeVar("M", bound=nn.Module)


def init_from_templates(
    model: M,
    templates: str | os.PathLike[str] | TemplateBundle | None = None,
    *,
    scalers: Scalers | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    r"""Fill a model in place with weights composed from templates, and return it.

    Every block weight becomes :math:`W = \sum_t T_t \otimes S_t` (WAVE, Feng et al., CVPR 2025,
    Eq. 4) at the model's own depth and width; the tensors outside the blocks are resampled and
    widened; a head with other classes is fresh.

    Args:
        model: of the family that the templates were trained in, and of any size.
        templates: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, or a
            bundle; None takes the shipped ``mixed-w96``.
        scalers: ``"nested"`` (WeiT), ``"interpolate"``, ``"linear"`` (WAVE's Eq. B.1) or
            ``"fitted"``; None is what the templates were trained for.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the templates cannot be had or are not sound.
        ProjectionError: if they do not fit the model.

    Warns:
        UserWarning: if no templates are named and the model has many more patches, or is much
            wider, than where the shipped ones were measured to help.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=3)
        >>> wi.init_from_templates(model) is model
        True
    """
    plan = plan_templates(
        model,
        templates,
        scalers=scalers,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).validate()
    for doubt in plan.doubts:  # before the first write, because a warning may be an error
        warnings.warn(f"init_from_templates: {doubt}", stacklevel=2)
    plan.commit()
    return model


def init_mimetic(
    model: M,
    *,
    options: Mimetic | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    r"""Fill a model in place so that its attention resembles a trained one's, and return it.

    No source is needed: in every layer :math:`W_Q W_K^\top \approx 0.7 Z + 0.7 I` for each head and
    :math:`W_V W_{proj} \approx 0.4 Z - 0.4 I` (Trockman & Kolter, ICML 2023, arXiv 2305.09828),
    positions are sinusoidal, and everything else is fresh by rule. It is meant for small data; the
    paper does not train the positions, which stay trainable here.

    Args:
        model: a vision transformer of any size.
        options: a :class:`weightinit.Mimetic`; None is the paper's.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        ProjectionError: if it is no vision transformer.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=96, num_heads=3)
        >>> wi.init_mimetic(model, generator=torch.Generator().manual_seed(0)) is model
        True
        >>> attn = model.blocks[0].attn
        >>> value_to_output = attn.proj.weight @ attn.qkv.weight[-96:]
        >>> -0.5 < value_to_output.diag().mean().item() < -0.3
        True
    """
    plan_mimetic(
        model, options=options, generator=generator, keep=keep, rules=rules, unexplained=unexplained
    ).commit()
    return model


def project_from(
    ancestor: AncestorLike,
    target: M,
    *,
    method: MethodName | Method = "auto",
    calibration: Iterable[Any] | Literal["generated", "none"] | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    """Fill a model in place with weights inherited from one pretrained ancestor, and return it.

    Narrower or wider, shallower or deeper, other heads, MLP ratio, patch and image size, all at
    once.

    With batches, a smaller target is fitted to what the ancestor does on them; without, a narrower
    one on generated data. That costs some multiples of the ancestor's own forward passes over the
    data, of which it sees 64 to 512 generated images, by 32 patches for each of its channels. A
    copy of the ancestor runs, with its forward hooks.

    A pre-norm model that ends in a norm, once fitted, is trained with AdamW at the rate of random
    weights, about 3e-4 to 1e-3. All else that is inherited wants about 2e-5 to 1e-4, and a new head
    ten times as much. The report of :func:`weightinit.plan_projection` says which.

    Args:
        ancestor: a timm name, ``"org/name@revision"`` on the Hugging Face Hub, a safetensors file
            or folder, a module, a state dict, or an :class:`weightinit.Ancestor`. It is only read.
        target: a model of the same family.
        method: by name, or an object of its options: ``wi.WeightSelection(faithful=True)``.
        calibration: a few batches that the ancestor takes, unlabelled: 5 to 20 of real data are
            best. None is what the method does without; ``"auto"`` fits a narrower target on images
            or tokens that it generates, where the ancestor can be run, and takes whole blocks where
            only blocks are fewer. ``"generated"`` gives such data to any method, and ``"none"``
            keeps ``"auto"`` to the weights alone, which takes seconds and mostly keeps less.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the target or the ancestor is not explained.
        BundleError: if the ancestor cannot be had or is not sound.
        ProjectionError: if the two do not fit.

    Warns:
        UserWarning: if the two are of very different size, or compute different functions; the
            report of :func:`weightinit.plan_projection` has the same lines.

    Examples:
        >>> import timm, weightinit as wi
        >>> ancestor, model = (
        ...     timm.create_model("vit_tiny_patch16_224", img_size=32, depth=n, embed_dim=d,
        ...                       num_heads=d // 32) for n, d in ((3, 96), (2, 64)))
        >>> wi.project_from(ancestor, model) is model
        True
    """
    plan = plan_projection(
        ancestor,
        target,
        method=method,
        calibration=calibration,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).validate()
    for doubt in plan.doubts:  # before the first write, because a warning may be an error
        warnings.warn(f"project_from: {doubt}", stacklevel=2)
    plan.commit()
    return target


def init_from_hypernet(
    model: M,
    hypernet: HypernetLike,
    *,
    task: Tensor | Iterable[Tensor] | None = None,
    ancestor: AncestorLike | None = None,
    faithful: bool | None = None,
    generator: torch.Generator | None = None,
    keep: Iterable[str] = (),
    rules: Iterable[Rule] = (),
    unexplained: Unexplained = "raise",
) -> M:
    """Fill a model in place with weights that a hypernetwork predicts for it, and return it.

    GHN-3 (Knyazev et al., ICML 2023), LoGAH (Zhou et al., 2024), TAL and PITH (Xu et al.). The
    prediction is deterministic, and runs no forward pass of the model. Layers that the published
    graphs have no node for (tokens, layer scales) are set by the rule that the report names.

    Args:
        model: a ViT or GPT-2 of any size.
        hypernet: a built-in name, a folder, ``"org/name@revision"`` on the Hugging Face Hub, a
            :class:`weightinit.HyperNetwork`, or a network.
        task: TAL: an embedding ``[task_dim]``, or images of the task, a batch ``[B, C, H, W]`` or
            an iterable of batches as the ancestor takes them, whose mean feature it is.
        ancestor: that PITH inherits from, or that makes the task's embedding.
        faithful: to the released code: tensors beyond the decoder's size are clipped and tiled, the
            positions of tokens are random, PITH's positions are one off, what has no node stays as
            it was, a language model's matrices have the standard deviation of its initialiser.
            None is the rules by which the hypernetwork was trained; the report notes them.
        generator: source of all random draws; None is a fixed seed.
        keep: names or roles (``"head"``, ``"pos"``) that stay as they are.
        rules: for parameters of yours that no rule explains.
        unexplained: ``"raise"`` on parameters without explanation, or ``"keep"`` them.

    Raises:
        AnatomyError: if a parameter of the model is not explained.
        BundleError: if the hypernetwork or the ancestor cannot be had or is not sound.
        ProjectionError: if the model has layers outside the vocabulary, or is larger than the
            hypernetwork predicts, or task or ancestor do not fit.

    Examples:
        >>> import timm, weightinit as wi
        >>> from weightinit.hypernet.config import HyperConfig
        >>> from weightinit.hypernet.network import GraphHyperNetwork
        >>> small = HyperConfig("logah", hid=16, layers=1, heads=2, rank=4, max_ck=8192)
        >>> logah = GraphHyperNetwork(small)
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=96, num_heads=3)
        >>> wi.init_from_hypernet(model, logah) is model
        True
    """
    plan_hypernet(
        model,
        hypernet,
        task=task,
        ancestor=ancestor,
        faithful=faithful,
        generator=generator,
        keep=keep,
        rules=rules,
        unexplained=unexplained,
    ).commit()
    return model
