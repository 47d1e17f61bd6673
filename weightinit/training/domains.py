"""What a hypernetwork is trained on, images or texts: batches, targets, loss and score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import Sampler
from weightinit.training.augment import batches, normalise
from weightinit.training.images import ImageData, ImageFiles, Split
from weightinit.training.loop import evaluate, loss_of
from weightinit.training.text import TextData, draws

__all__ = ["IMAGES", "TEXTS", "Data", "Domain", "Part", "bits_per_byte", "domain_of", "gpt2"]

Data = ImageData | TextData
#: What is scored of a data set.
Part = Split | Tensor


class Domain(Protocol):
    """A kind of data, and of the networks that read it."""

    #: In words: the data, its networks, and what a score is.
    name: str
    networks: str
    metric: str
    #: Of the samplers.
    family: str
    #: Digits of a score behind the point.
    digits: int

    def image_size(self, tasks: Sequence[Any]) -> int:
        """Return the side of the images of all tasks, 0 if there are none."""
        ...

    def batches(self, data: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, wanted) for each step; options as in ``augment.batches``."""
        ...

    def inputs(self, data: Any, batch_size: int) -> Iterator[Tensor]:
        """Yield the training inputs, once."""
        ...

    def arguments(self, kwargs: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """Return a sampler's arguments with what the data decides."""
        ...

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Return the network of :meth:`arguments`."""
        ...

    def loss(self, out: Any, wanted: Tensor, label_smoothing: float) -> Tensor:
        """Return the cross-entropy of what a network returned."""
        ...

    def score(self, model: nn.Module, data: Any, part: Any = None) -> float:
        """Return the score of a network on a part of the data, the validation's by default."""
        ...

    def size(self, kwargs: Mapping[str, Any]) -> str:
        """Return ``"<width>x<depth>"`` of a sampler's arguments."""
        ...


class _Images:
    name, networks, metric = "images", "vision transformers", "accuracy in percent"
    family, digits = "vit", 2

    def image_size(self, tasks: Sequence[ImageData]) -> int:
        shapes = set()
        for task in tasks:
            images = task.train.images
            size = (
                (images.size,) * 2 if isinstance(images, ImageFiles) else tuple(images.shape[1:3])
            )
            shapes.add((*size, len(task.mean)))
        if len(shapes) != 1 or any(height != width for height, width, _ in shapes):
            raise WeightInitError(
                f"the tasks have images of {sorted(shapes)}: bring them to one square shape with "
                "weightinit.training.tasks.in_shape(data, size)"
            )
        return shapes.pop()[0]

    def batches(self, data: ImageData, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(data, **options)

    def inputs(self, data: ImageData, batch_size: int) -> Iterator[Tensor]:
        for rows in torch.arange(len(data.train)).split(batch_size):
            yield normalise(data.train.images[rows], data)

    def arguments(self, kwargs: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
        return {"num_classes": data.classes, "in_chans": len(data.mean), **kwargs}

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        import timm

        return timm.create_model("vit_tiny_patch16_224", **arguments)

    def loss(self, out: Tensor, wanted: Tensor, label_smoothing: float) -> Tensor:
        return loss_of("ce", out, wanted, None)  # the batch is smooth already

    def score(self, model: nn.Module, data: ImageData, part: Split | None = None) -> float:
        return evaluate(model, data.val if part is None else part, data)

    def size(self, kwargs: Mapping[str, Any]) -> str:
        return f"{kwargs['embed_dim']}x{kwargs['depth']}"


class _Texts:
    name, networks, metric = "texts", "GPT-2", "bits per byte"
    family, digits = "gpt2", 4

    def image_size(self, tasks: Sequence[TextData]) -> int:
        return 0

    def batches(self, data: TextData, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        known = ("steps", "batch_size", "seed", "rank", "world")
        return draws(data, **{name: options[name] for name in known if name in options})

    def inputs(self, data: TextData, batch_size: int) -> Iterator[Tensor]:
        yield from data.windows(data.train)[:, :-1].split(batch_size)

    def arguments(self, kwargs: Mapping[str, Any], data: TextData) -> dict[str, Any]:
        return {"vocab_size": data.vocab, "n_positions": data.context, **kwargs}

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        return gpt2(arguments)

    def loss(self, out: Any, wanted: Tensor, label_smoothing: float) -> Tensor:
        logits = out.logits.float().flatten(0, 1)
        return functional.cross_entropy(logits, wanted.flatten(), label_smoothing=label_smoothing)

    def score(self, model: nn.Module, data: TextData, part: Tensor | None = None) -> float:
        return bits_per_byte(model, data, part)

    def size(self, kwargs: Mapping[str, Any]) -> str:
        return f"{kwargs['n_embd']}x{kwargs['n_layer']}"


IMAGES: Domain = _Images()
TEXTS: Domain = _Texts()


def domain_of(tasks: Sequence[Data], sampler: Sampler | None = None) -> Domain:
    """Return the domain of some tasks.

    Raises:
        WeightInitError: if there are none, images and texts among them, or the sampler draws no
            networks for them.
    """
    kinds = {isinstance(task, TextData) for task in tasks}
    if len(kinds) != 1:
        raise WeightInitError(f"{len(tasks)} tasks: use one or more, all images or all texts")
    found = TEXTS if kinds.pop() else IMAGES
    if sampler is not None and sampler.family != found.family:
        raise WeightInitError(
            f"sampler {sampler.name!r} trains no {found.networks}: use another for {found.name}"
        )
    return found


def gpt2(arguments: Mapping[str, Any]) -> nn.Module:
    """Return Hugging Face's GPT-2 with its language model head, without dropout.

    Args:
        arguments: of ``transformers.GPT2Config``.

    Raises:
        WeightInitError: if transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise WeightInitError(
            "GPT-2 needs transformers: install it with pip install transformers"
        ) from error
    fixed = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    none = dict.fromkeys(("bos_token_id", "eos_token_id"))
    return GPT2LMHeadModel(GPT2Config(**fixed, **none, use_cache=False, **arguments))


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, data: TextData, tokens: Tensor | None = None, *, batch_size: int = 64
) -> float:
    """Return the cross-entropy of a language model in bits for each UTF-8 byte of the text.

    Args:
        model: maps tokens ``[B, T]`` to an object with ``logits [B, T, vocab]``; its mode is put
            back.
        data: of which the tokens are a part.
        tokens: to score; None is the held-out text, 1,024 windows of it at most.
        batch_size: windows at a time.
    """
    modes = [(m, m.training) for m in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    windows = data.windows(data.val if tokens is None else tokens)
    total = 0.0
    for batch in windows.to(device).split(batch_size):
        total += float(TEXTS.loss(model(batch[:, :-1]), batch[:, 1:], 0.0)) * len(batch)
    for m, mode in modes:
        m.training = mode
    return total / len(windows) / math.log(2) / data.bytes_per_token
