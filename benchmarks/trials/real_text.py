"""A sentence encoder in other sizes: how far its embeddings agree with the ancestor's at once.

Sentences to look at, to choose by and to report on come from different texts.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import weightinit as wi
from trials.corpora import sentences
from trials.run import write
from weightinit.inherit.method import Method
from weightinit.registry import MethodName

__all__ = ["STARTS", "TARGETS", "agreement", "rows"]

os.environ.setdefault("WEIGHTINIT_ANCESTORS", "../shared/ancestors")
#: Width and depth: fewer layers, narrower, both, more layers, wider.
TARGETS = ("384x3", "384x4", "256x6", "256x4", "384x12", "512x6")
#: By part: the text, and how many of its sentences.
TEXTS = {"calibration": ("docstrings", 512), "val": ("licences", 256), "test": ("reference", 512)}
#: Sentences at a time, and their tokens at most.
BATCH, LENGTH = 64, 64

Batches = list[dict[str, Tensor]]


class Asked(Protocol):
    """What was asked for on the command line of `real.py`."""

    @property
    def ancestor(self) -> str:
        """Folder of the ancestor under ``$WEIGHTINIT_ANCESTORS``, or its name on the Hub."""
        ...

    @property
    def work(self) -> Path:
        """Folder of finished rows."""
        ...

    @property
    def targets(self) -> Sequence[str]:
        """Sizes, as in "256x4"; none are all."""
        ...

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds of all draws; none are 0, 1 and 2."""
        ...

    @property
    def part(self) -> str:
        """Sentences to score on: "val" or "test"."""
        ...

    @property
    def smoke(self) -> bool:
        """Whether everything is tiny."""
        ...

    def wants(self, start: str) -> bool:
        """Whether a start is among those asked for."""
        ...


def rows(options: Asked) -> list[dict[str, Any]]:
    """Return a row for each target, start and seed; those that are there are not done again."""
    seeds = options.seeds or ((0,) if options.smoke else (0, 1, 2))
    targets = options.targets or (("256x2",) if options.smoke else TARGETS)
    encoder: Encoder | None = None
    found = []
    for target in targets:
        for start in filter(options.wants, STARTS):
            for seed in seeds:
                name = f"{target} {start} {options.part} {seed}.json".replace(" ", "-")
                file = options.work / name
                if not file.exists():
                    encoder = encoder or Encoder(options.ancestor, options.part, options.smoke)
                    write(encoder.row(target, start, seed), file)
                found.append(json.loads(file.read_text()))
    return found


def _random(model: nn.Module, ancestor: nn.Module, batches: Batches, seed: int) -> str:
    """Keep the random weights of transformers."""
    return ""


def _inherited(
    model: nn.Module,
    ancestor: nn.Module,
    batches: Batches,
    seed: int,
    *,
    method: MethodName | Method = "auto",
    calibrated: bool = False,
) -> str:
    """Inherit by a method; return what it says of the whole."""
    plan = wi.plan_projection(
        ancestor,
        model,
        method=method,
        calibration=batches if calibrated else None,
        generator=torch.Generator().manual_seed(seed),
    )
    plan.validate().commit()
    return "; ".join(plan.report().notes[:1])


#: By the name that tables show: fills a model in place.
STARTS: Mapping[str, Callable[[nn.Module, nn.Module, Batches, int], str]] = {
    "random": _random,
    "Weight Selection": partial(_inherited, method=wi.WeightSelection(faithful=True)),
    "subcloning": partial(_inherited, method="subcloning", calibrated=True),
    "default without data": _inherited,
    "default with data": partial(_inherited, calibrated=True),
}


class Encoder:
    """The ancestor, and the sentences that it is compared on.

    Args:
        name: of the ancestor.
        part: sentences to score on.
        smoke: whether there are few.
    """

    def __init__(self, name: str, part: str, smoke: bool) -> None:
        folder = Path(os.environ["WEIGHTINIT_ANCESTORS"]) / name
        source = folder if folder.is_dir() else name
        self.ancestor = transformers.AutoModel.from_pretrained(source, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        self.part, self.smoke = part, smoke
        self.given = self._batches(part, 0)
        self.embeddings = embed(self.ancestor, self.given)

    def _batches(self, part: str, seed: int) -> Batches:
        """Return sentences of a part, those of about the same length together."""
        text, number = TEXTS[part]
        every = sentences(text)
        random.Random(seed).shuffle(every)  # noqa: S311
        chosen = sorted(every[: 32 if self.smoke else number], key=len)
        options = {"padding": True, "truncation": True, "max_length": LENGTH}
        return [
            dict(self.tokenizer(chosen[start : start + BATCH], return_tensors="pt", **options))
            for start in range(0, len(chosen), BATCH)
        ]

    def row(self, target: str, start: str, seed: int) -> dict[str, Any]:
        """Start a target, and compare it with the ancestor."""
        width, depth = map(int, target.split("x"))
        batches = self._batches("calibration", seed)
        model = self._target(width, depth, seed)
        found = {"target": target, "start": start, "seed": seed, "part": self.part}
        before = time.process_time()
        try:
            found["result"] = STARTS[start](model, self.ancestor, batches, seed)
        except wi.ProjectionError as error:
            return found | {"refused": str(error)}
        found["cpu_seconds"] = round(time.process_time() - before, 1)
        maps = readout(tokens(model, batches), tokens(self.ancestor, batches))
        embeddings = embed(model, self.given)
        return found | agreement(embeddings, self.embeddings, embeddings @ maps[0] + maps[1])

    def _target(self, width: int, depth: int, seed: int) -> nn.Module:
        """Return a model of transformers' own random weights; heads are of the ancestor's size."""
        known = self.ancestor.config.to_dict()
        sizes = {"num_attention_heads": width, "intermediate_size": width}
        sizes = {name: known[name] * size // known["hidden_size"] for name, size in sizes.items()}
        sizes |= {"hidden_size": width, "num_hidden_layers": depth}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = type(self.ancestor.config)(**{**known, **sizes})
            return type(self.ancestor)(config).eval()


@torch.no_grad()
def tokens(model: nn.Module, batches: Batches) -> Tensor:
    """Return the last stream of every token that is no padding, float64 ``[N, d]``."""
    masks = (batch["attention_mask"].bool() for batch in batches)
    states = (model(**batch).last_hidden_state for batch in batches)
    return torch.cat([x[mask] for x, mask in zip(states, masks, strict=True)]).double()


@torch.no_grad()
def embed(model: nn.Module, batches: Batches) -> Tensor:
    """Return the mean of every sentence's tokens, float64 ``[N, d]``."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"][..., None].double()
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def readout(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map ``[d', d]`` and offset ``[d]`` of least squares from one stream to another."""
    x, y = ours - ours.mean(0), theirs - theirs.mean(0)
    gram = x.T @ x
    gram.diagonal().add_(1e-3 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y)
    return weight, theirs.mean(0) - ours.mean(0) @ weight


def agreement(ours: Tensor, theirs: Tensor, mapped: Tensor) -> dict[str, float]:
    """Return how far embeddings agree, with the standard error over sentences.

    Args:
        ours: of the target ``[N, d']``, whose pairs are ranked by their cosines.
        theirs: of the ancestor ``[N, d]``.
        mapped: ours, in the ancestor's space.
    """
    cosines = functional.cosine_similarity(mapped, theirs)
    pairs = torch.triu_indices(len(ours), len(ours), 1)
    both = (functional.normalize(x, dim=1) for x in (ours, theirs))
    ranks = torch.stack([(x @ x.T)[pairs[0], pairs[1]].argsort().argsort().double() for x in both])
    return {
        "n": len(ours),
        "cosine": round(float(cosines.mean()), 4),
        "cosine_error": round(float(cosines.std() / len(ours) ** 0.5), 4),
        "rank_correlation": round(float(torch.corrcoef(ranks)[0, 1]), 4),
    }
