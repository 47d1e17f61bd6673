"""Labelled examples of the user's: a few batches, held, in two parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from weightinit.errors import WeightInitError

__all__ = ["Batch", "check_classes", "check_labels", "classes", "divided", "held", "labelled"]

#: Inputs (positional, or by the names of keyword arguments) and labels.
Batch = tuple[Any, Tensor]

#: Bytes that are held, so that a loader without an end is found out.
MOST_BYTES = 2 << 30
#: One batch in so many is held out.
EVERY = 5
#: Labels that cross-entropy leaves out.
IGNORED = -100
LABELS = ("labels", "label", "targets", "target")


def held(batches: Iterable[Any], most: int | None, name: str) -> list[Batch]:
    """Return one pass over an iterable of batches, but at most so many.

    A batch is a pair of inputs and labels, or a dict of what ``forward`` takes and ``labels``.

    Raises:
        WeightInitError: if there are none, or they have no labels.
    """
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise WeightInitError(
            f"{name}= is a {type(batches).__name__}: pass an iterable of (inputs, labels) batches, "
            "such as a data loader"
        )
    found: list[Batch] = []
    size = 0
    for number, batch in enumerate(islice(batches, most)):
        inputs, labels = _pair(batch, f"batch {number} of {name}=")
        parts = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
        size += sum(x.numel() * x.element_size() for x in parts if isinstance(x, Tensor))
        if size > MOST_BYTES and found:
            warnings.warn(
                f"compare: {name}= has more than {MOST_BYTES >> 30} GiB, which are held: only its "
                f"first {number} batches are used. Pass smaller ones, or fewer steps",
                stacklevel=4,
            )
            break
        found.append((inputs, labels))
    if not found:
        raise WeightInitError(
            f"{name}= holds no batches: pass (inputs, labels) batches; an iterator that was read "
            "before is empty"
        )
    return found


def _pair(batch: Any, what: str) -> Batch:
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        inputs = {k: v for k, v in batch.items() if k != key}
        labels = None if key is None else batch[key]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        inputs, labels = batch[0], batch[1]
    else:
        inputs, labels = batch, None
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (RuntimeError, TypeError, ValueError) as error:
            raise WeightInitError(
                f"{what} is a {type(batch).__name__} without labels: pass (inputs, labels) pairs, "
                f"or dicts with one of {LABELS}, the labels as a tensor"
            ) from error
    if not labels.dim() or not len(labels):
        raise WeightInitError(f"{what} holds no examples: leave it out")
    return inputs, labels


def divided(train: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return all batches but every fifth, and those."""
    if len(train) < 2:
        raise WeightInitError(
            "batches= holds one batch, of which nothing can be held out: pass smaller batches, or "
            "val= with batches of other examples"
        )
    every = min(EVERY, len(train))
    rest = [batch for number, batch in enumerate(train, 1) if number % every]
    return rest, train[every - 1 :: every]


def classes(labels: Tensor) -> Tensor | None:
    """Return class numbers of labels, which may be distributions; None where there are none."""
    if not labels.is_floating_point() and not labels.is_complex():
        return labels
    return labels.argmax(1) if labels.dim() == 2 and labels.shape[1] > 1 else None


def check_classes(batches: Sequence[Batch], name: str) -> None:
    """Raise WeightInitError if all labels are one class."""
    numbers = [classes(labels) for _, labels in batches]
    found = {int(n) for some in numbers if some is not None for n in some.unique()} - {IGNORED}
    if len(found) == 1:
        raise WeightInitError(
            f"all labels of {name} are {found.pop()}, and two classes at least are needed: shuffle "
            "the data, or pass val="
        )


def labelled(batches: Sequence[Batch]) -> list[Batch]:
    """Return the batches of which a label counts."""
    found: list[Batch] = []
    for inputs, labels in batches:
        numbers = classes(labels)
        if numbers is None or bool((numbers != IGNORED).any()):
            found.append((inputs, labels))
    if not found:
        raise WeightInitError(f"all labels are {IGNORED}, which is ignored: pass labelled examples")
    return found


def check_labels(labels: Tensor, known: int) -> None:
    """Raise WeightInitError for a label that a head of so many classes lacks."""
    numbers = None if labels.is_floating_point() else classes(labels)
    if numbers is None:
        return
    numbers = numbers[numbers != IGNORED]
    bad = numbers[(numbers < 0) | (numbers >= known)]
    if len(bad):
        raise WeightInitError(
            f"label {int(bad[0])} is outside of the model's {known} classes: build it with "
            "num_classes= as many as there are, numbered from 0"
        )
