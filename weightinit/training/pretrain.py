"""Pre-training under a constraint with any loss: labels, noise of a diffusion, actions (WeiT)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import WeightInitError
from weightinit.templates.constrained import ConstrainedModel
from weightinit.templates.nested import NestedModel
from weightinit.training.checkpoint import History
from weightinit.training.config import TrainingConfig
from weightinit.training.contexts import seeded, subseed
from weightinit.training.fleet import accelerator
from weightinit.training.loop import follow

__all__ = ["pretrain"]


def pretrain(
    constrained: ConstrainedModel,
    train_step: Callable[[ConstrainedModel, torch.Generator], Tensor],
    config: TrainingConfig,
    *,
    score: Callable[[ConstrainedModel], Mapping[str, float]] | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> History:
    """Train the templates, scalers and the rest of a constrained model in place, by any loss.

    A step is a function of the seed and its number alone, if all that ``train_step`` draws comes
    from the generator or from the global ones, which are seeded for the step and put back: a run
    that was stopped goes on with the same bits. A model of several sizes under the policy
    ``"sandwich"`` takes two passes a step, on the same draws, whose gradients are averaged.

    Args:
        constrained: what :func:`weightinit.constrain` returns.
        train_step: maps the model and a generator on the CPU to the scalar loss of one batch. Each
            process of a torchrun gets draws of its own.
        config: how to train; ``scaler_lr`` is the rate of scalers over that of templates, ``ema``
            the decay of the average that the model ends with. What concerns data and labels is
            ``train_step``'s own affair.
        score: measures the model on validation data, as ``"val"`` and more.
        out: folder for ``checkpoint.safetensors`` and ``history.json``; None writes nothing.
        **options: ``resume``, ``save_every``, ``eval_every``, ``progress`` and ``title`` of
            :func:`weightinit.training.loop.follow`.

    Returns:
        The history, with losses and scores.

    Raises:
        WeightInitError: if ``train_step`` returns no scalar with a gradient, the checkpoint is of
            another config or model, or the loss is not finite.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> from weightinit.training.config import TrainingConfig
        >>> from weightinit.training.pretrain import pretrain
        >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, num_heads=2)
        >>> model = wi.constrain(vit, wi.TemplateConfig.wave(32))
        >>> def step(module, generator):
        ...     images = torch.randn(4, 3, 32, 32, generator=generator)
        ...     return module(images).square().mean()
        >>> history = pretrain(model, step, TrainingConfig(2, scaler_lr=0.5))
        >>> history.rows[-1]["step"]
        2
    """
    fleet = accelerator()
    passes = constrained.passes if isinstance(constrained, NestedModel) else 1
    constrained.to(fleet.device).train()
    cuda = (fleet.device.index or 0,) if fleet.device.type == "cuda" else ()

    def terms(step: int) -> Iterator[Tensor]:
        for _ in range(passes):
            seed = subseed(config.seed, 8, step, fleet.process_index)
            with seeded(seed, cuda), config.autocast(fleet.device):
                loss = train_step(constrained, torch.Generator().manual_seed(seed))
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                what = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise WeightInitError(
                    f"train_step returned {what}: return the loss of a batch, a scalar tensor that "
                    "was computed from the model's output with gradients"
                )
            yield loss / passes

    return follow(
        config,
        constrained,
        lambda steps: map(terms, steps),
        lambda: {} if score is None else score(constrained),
        out=None if out is None else Path(out).expanduser(),
        **options,
    )
