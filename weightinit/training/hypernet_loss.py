"""What a hypernetwork is trained by: its recipe, and the loss of one predicted network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.inherit.running import captured
from weightinit.training.recipe import Recipe
from weightinit.training.targets import GUIDE, Target, Targets
from weightinit.training.tasks import Data

__all__ = ["MetaRecipe", "guidance", "meta_loss"]


@dataclass(frozen=True)
class MetaRecipe(Recipe):
    """How to train a hypernetwork; the defaults are those of LoGAH, TAL and PITH.

    Args:
        penalty: weight of the sum of the Frobenius norms of all predicted parameters.
        architectures: number drawn at each step by each process; their gradients are averaged.
        guide: weight of TAL's KL between features of target and ancestor, that of the CE being the
            rest; 0 for no guide. The paper takes 0.2.
        guide_temperature: T of its softmax.
        faithful: reverse the KL and scale it as the released code does.
        frozen: keep the encoder's layers, but for FiLM, as TAL's second stage does.
    """

    lr: float = 3e-4
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    clip_grad: float = 5.0
    penalty: float = 3e-5
    architectures: int = 1
    guide: float = 0.0
    guide_temperature: float = 3.0
    faithful: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        """Check the values that a command line can set."""
        super().__post_init__()
        if self.loss != "ce":
            raise WeightInitError(f"loss {self.loss!r} trains no hypernetwork: use 'ce' and guide=")
        if self.architectures < 1 or not 0 <= self.guide <= 1 or self.guide_temperature <= 0:
            raise WeightInitError(
                f"architectures={self.architectures}, guide={self.guide} and guide_temperature="
                f"{self.guide_temperature}: use at least 1, 0 to 1, and more than 0"
            )


def guidance(
    student: Tensor, teacher: Tensor, temperature: float = 3.0, *, faithful: bool = False
) -> Tensor:
    """Return TAL's Eq. 4, KL(student || teacher) of softmax(feature / T), averaged over images.

    Args:
        student: projected features of the target ``[B, d]``.
        teacher: features of the ancestor ``[B, d]``.
        temperature: T.
        faithful: the released code's: KL(teacher || student) times T^2 / 1000.

    Examples:
        >>> a = torch.tensor([[0.0, 3.0]])
        >>> float(guidance(a, a)), float(guidance(a, -a)) > 0
        (0.0, True)
    """
    p, q = (
        functional.log_softmax(feature.float() / temperature, -1) for feature in (student, teacher)
    )
    if faithful:
        divergence = functional.kl_div(p, q, reduction="batchmean", log_target=True)
        return divergence * temperature**2 / 1000
    return functional.kl_div(q, p, reduction="batchmean", log_target=True)


def meta_loss(
    targets: Targets,
    target: Target,
    data: Data,
    inputs: Tensor,
    labels: Tensor,
    task: Tensor | None,
    teacher: Tensor | None,
    recipe: MetaRecipe,
) -> Tensor:
    """Return CE, or TAL's mix of it and the guide, and the penalty on what is predicted.

    Args:
        targets: makes the prediction.
        target: architecture whose weights are predicted.
        data: data of the batch.
        inputs: images ``[B, C, H, W]`` or tokens ``[B, T]``.
        labels: distributions over the classes ``[B, n]``, or the next tokens ``[B, T]``.
        task: TAL's task embedding ``[task_dim]``.
        teacher: the ancestor's features, ``[B, d]`` or ``[B * T, d]``, where there is a guide.
        recipe: names the terms.
    """
    prediction = targets.predict(target, task)
    weights = prediction.parameters()
    with recipe.autocast(inputs.device), captured(target.model, target.anatomy) as features:
        out = functional_call(target.model, weights, (inputs,))
    loss = data.loss(out, labels, recipe.label_smoothing)
    predicted = [weight for weight in weights.values() if weight.requires_grad]
    if teacher is not None:
        guide = prediction.weights[-1, GUIDE]
        predicted.append(guide)
        kl = guidance(
            features[0].float() @ guide.T,
            teacher,
            recipe.guide_temperature,
            faithful=recipe.faithful,
        )
        loss = recipe.guide * kl + (1 - recipe.guide) * loss
    if recipe.penalty:
        loss = loss + recipe.penalty * torch.stack([weight.norm() for weight in predicted]).sum()
    return loss
