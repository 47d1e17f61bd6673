"""Which start for a model: each tried at once and after a short training, on the user's data."""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from weightinit.api import AncestorLike
from weightinit.comparison.examples import check_classes, divided, held, labelled
from weightinit.comparison.outcome import Comparison, Outcome, rank
from weightinit.comparison.starts import Start, Starter, named_starts
from weightinit.comparison.trial import Loss, Trial, copied, cross_entropy, said
from weightinit.errors import WeightInitError
from weightinit.inherit.fresh import base_seed
from weightinit.training.contexts import seeded

__all__ = ["compare"]

#: Learning rates that are tried: weights that are taken over as they are want the lowest, what is
#: fitted, random or composed of templates the others.
LRS = (3e-5, 3e-4, 1e-3)
#: Batches that are read at least, if there are so many, for the held-out part of them.
LEAST = 40
#: Batches that an ancestor looks at.
CALIBRATION = 8


def compare(
    model: nn.Module,
    candidates: Mapping[str, Start] | Iterable[Start] | None,
    batches: Iterable[Any],
    *,
    val: Iterable[Any] | None = None,
    ancestor: AncestorLike | None = None,
    calibration: Iterable[Any] | Literal["generated", "none"] | None = None,
    steps: int = 100,
    lrs: float | Iterable[float] = LRS,
    loss: Loss | None = None,
    generator: torch.Generator | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Compare starts of a model on data of your own, at once and after a short training.

    Copies are filled and trained; the model is left as it is. All see the same batches in the same
    order, with AdamW (weight decay 0.05, gradients clipped at norm 1), whose rate rises over the
    first tenth of the steps and falls to zero along half a cosine. Each learning rate is a training
    of its own, and the one with the best held-out score counts: measure the winner on other data.

    Args:
        model: any module; timm's and other explained ones can be filled by every start.
        candidates: starts by name, a list of them, or None for all that ship and, with
            ``ancestor``, all methods that need no training. A start is one of:

            - ``"random"``: the model's own weights, as they are; ``"mimetic"``;
            - templates or a hypernetwork: a built-in name, a folder, ``"org/name@revision"``, or an
              object;
            - an ancestor, as :func:`weightinit.project_from` takes it, or ``(ancestor, method)``;
            - a method by name or as an object, ``wi.LEMON()``, that inherits from ``ancestor``;
            - a function that fills the model it is given, in place.
        batches: (inputs, labels) pairs, or dicts of what the model takes and ``labels``: a list or
            a data loader, which is read once. As many as are needed are held in memory, 2 GiB at
            most, and seen again where there are fewer than steps.
        val: further batches, to score on; None holds out every fifth of ``batches``.
        ancestor: what methods inherit from, and hypernetworks that need one.
        calibration: for methods that look at data, as :func:`weightinit.project_from` takes it;
            None takes the inputs of the first eight of ``batches``, if the ancestor takes such.
        steps: of each training; 0 scores at once alone.
        lrs: learning rate, or rates, to try.
        loss: maps the model's output and labels to a scalar, its mean; None is cross-entropy of the
            output, or of its ``logits``.
        generator: source of all random draws; None is a fixed seed.
        progress: whether to show a bar; None shows it on a terminal.

    Returns:
        A :class:`weightinit.Comparison`, the best start first. A start that does not apply, or
        whose loss is not finite at any rate, is a row that says why.

    Raises:
        WeightInitError: if batches or labels are none that the model can be trained on, or no start
            applies.

    Examples:
        >>> import timm, torch, weightinit as wi
        >>> model = timm.create_model(
        ...     "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=32,
        ...     num_heads=2, depth=2, num_classes=10)
        >>> batches = [(torch.randn(4, 1, 8, 8), torch.arange(4)) for _ in range(3)]
        >>> found = wi.compare(model, ["random", "digits-w32"], batches, steps=2, lrs=[1e-3])
        >>> sorted(row.name for row in found.rows)
        ['digits-w32', 'random']
    """
    starts = named_starts(candidates, ancestor is not None)
    rates = tuple(map(float, lrs if isinstance(lrs, Iterable) else [lrs]))
    sound = bool(rates) and all(0 < lr < math.inf for lr in rates)
    if type(steps) is not int or steps < 0 or not sound:
        raise WeightInitError(f"{steps=}, lrs={rates}: pass a whole number, and rates above 0")
    if steps and not any(parameter.requires_grad for parameter in model.parameters()):
        raise WeightInitError(
            "no parameter of the model requires a gradient: set requires_grad of what is to be "
            "trained, or pass steps=0"
        )
    seed = base_seed(generator)
    with seeded(seed):  # a loader that shuffles takes its order from the global generator
        most = max(LEAST, steps + steps // 4) if val is None else max(CALIBRATION, steps)
        train = held(batches, most, "batches")
        scored = [] if val is None else held(val, None, "val")
    if loss is None:
        train, scored = labelled(train), labelled(scored) if scored else []
    if val is None:
        train, scored = divided(train)
    if loss is None:
        check_classes(train, "batches")
        check_classes(scored, "val" if val is not None else "the held-out part of batches")
    trial = Trial(train, scored, steps, rates, loss or cross_entropy, loss is None, seed)
    if not any(parameter.is_meta for parameter in model.parameters()):
        trial.check(copied(model))
    inputs = [batch for batch, _ in train[:CALIBRATION]]
    starter = Starter(ancestor, calibration, inputs, seed)
    rows: list[Outcome] = []
    seen: dict[bytes, Outcome] = {}
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(starts) * len(rates) * steps, disable=not shown, unit="step") as bar:
        for number, (name, start) in enumerate(starts.items(), 1):
            bar.set_description(name)
            rows.append(_outcome(model, name, start, starter, trial, seen, bar.update))
            bar.update(number * len(rates) * steps - bar.n)
    rows.sort(key=lambda row: (bool(row.error), rank(row.score)))
    if rows[0].error:
        reasons = "; ".join(f"{row.name}: {row.error}" for row in rows)
        raise WeightInitError(f"no start could be compared ({reasons}): pass other candidates=")
    examples = sum(len(labels) for _, labels in scored)
    return Comparison(rows, steps, rates, examples, seed)


def _outcome(
    model: nn.Module,
    name: str,
    start: Start,
    starter: Starter,
    trial: Trial,
    seen: dict[bytes, Outcome],
    tick: Callable[[], object],
) -> Outcome:
    """Return what one start is worth, or why that is not known."""
    filled = copied(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            source, notes = starter.fill(filled, start)
        except Exception as error:  # a user's own function may raise anything
            return Outcome(name, error=f"does not apply: {said(error)}")
    notes += [str(one.message) for one in caught]
    same = seen.get(digest := _digest(filled))
    if same is not None:
        notes = [f"the same weights as {same.name}", *notes]
        return replace(same, name=name, source=source, notes=tuple(notes))
    try:
        trial.check(filled)
        at_once = trial.score(filled)
        rates = tuple((lr, trial.trained(filled, lr, tick)) for lr in trial.rates if trial.steps)
    except Exception as error:  # whatever a forward pass makes of a model
        return Outcome(name, source, notes=tuple(notes), error=f"cannot be trained: {said(error)}")
    lr, best = min(rates, key=lambda pair: rank(pair[1])) if rates else (None, at_once)
    if not math.isfinite(best.loss):
        what = f"at every rate of lrs={trial.rates}" if rates else "at once"
        reason = f"the loss is not finite {what}: pass lower ones, or check the inputs"
        return Outcome(name, source, at_once, rates=rates, notes=tuple(notes), error=reason)
    lost = [f"{rate:g}" for rate, score in rates if not math.isfinite(score.loss)]
    notes += [f"the loss was not finite at lr {', '.join(lost)}"] if lost else []
    outcome = Outcome(name, source, at_once, best if rates else None, lr, rates, tuple(notes))
    seen[digest] = outcome
    return outcome


def _digest(module: nn.Module) -> bytes:
    """Return what is the same for the same parameters and buffers."""
    found = hashlib.sha256()
    for tensor in (*module.parameters(), *module.buffers()):
        found.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return found.digest()
