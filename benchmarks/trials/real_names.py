"""What opens by name, what is refused with which words, and what loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightinit as wi
from trials.pretrained import Pretrained, Target, folder, words
from trials.real_suite import Options, Piece
from weightinit.errors import WeightInitError

__all__ = ["CHECKS", "Check", "pieces"]

#: A folder of transformers' beside the files.
TEXTS = "minilm_l6"
TARGET = Target(192, 6)
GROWN = ("480x12", "384x16", "512x14", "768x12")
PREFIXES = ("module.", "backbone.", "model.", "encoder.")
SIDE = 98


def pieces(options: Options) -> Iterator[Piece]:
    """Yield the pieces of the suite."""
    for name in CHECKS:
        texts = name.startswith("folder")
        there = (folder() / TEXTS).is_dir() if texts else Pretrained(options.ancestor).file
        if options.wants(name) and there:
            yield Check(name)
    for target in options.targets or GROWN:
        if options.wants("grown"):
            yield Check("grown", target)


@dataclass(frozen=True)
class Check(Piece):
    """One thing that a user would type."""

    check: str
    target: str = ""

    @property
    def title(self) -> str:
        """What tells the piece from all others of its suite."""
        return f"{self.check} {self.target}".strip()

    def row(self, options: Options) -> dict[str, Any]:
        """Do it, and say how it went."""
        row: dict[str, Any] = {"name": self.check, "target": self.target}
        if self.check.startswith("folder"):
            row["ancestor"] = TEXTS
            ways: Callable[[], dict[str, Any]] = partial(CHECKS[self.check], folder() / TEXTS)
        else:
            ancestor = Pretrained(options.ancestor)
            row["ancestor"] = ancestor.name
            ways = (
                partial(grown, ancestor, Target.parse(self.target))
                if self.target
                else partial(CHECKS[self.check], ancestor)
            )
        try:
            found = ways()
        except WeightInitError as error:
            return row | {"result": "refused", "words": words(error)}
        return row | {"result": "works", **found}


def _opened(source: Any, **options: Any) -> dict[str, Any]:
    seen = wi.Ancestor.open(source, **options).anatomy
    return {"words": f"{seen.family}, {seen.depth} blocks, {dict(seen.sizes)}"}


def _filled(source: Any, model: nn.Module) -> dict[str, Any]:
    plan = wi.plan_projection(source, model)
    plan.validate().commit()
    report = plan.report()
    fresh = sorted({row.role for row in report.rows if row.action == "fresh"})
    said = "; ".join([*report.notes, f"fresh: {', '.join(fresh) or 'nothing'}"])
    return {"words": words(said)}


def _state(ancestor: Pretrained, prefix: str) -> dict[str, Tensor]:
    state = ancestor.model(ancestor.side(SIDE)).state_dict()
    return {prefix + name: value for name, value in state.items()}


def _misspelt(ancestor: Pretrained) -> dict[str, Any]:
    name = ancestor.architecture
    return _opened(name.replace("t", "", 1) if "t" in name else name[1:])


def _difference(one: Tensor, other: Tensor) -> dict[str, Any]:
    """Return the largest difference of outputs, as a part of the largest output."""
    part = ((one - other).abs().max() / other.abs().max()).item()
    return {"difference": float(f"{part:.2g}"), "equal": part <= 1e-4}


@torch.no_grad()
def _same(ancestor: Pretrained, source: Any, side: int) -> dict[str, Any]:
    """Fill a model of the ancestor's own size, and compare with timm's own loading."""
    model = ancestor.build(num_classes=0, img_size=side).eval()
    said = _filled(source, model)
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return said | _difference(model(images), ancestor.model(side)(images))


def _own_side(ancestor: Pretrained) -> int:
    with torch.device("meta"):
        model: Any = ancestor.build(num_classes=0)
    return model.patch_embed.img_size[0]


def _open_file(ancestor: Pretrained) -> Any:
    return wi.Ancestor.open(ancestor.file or ancestor.name, heads=ancestor.sizes[2])


def grown(ancestor: Pretrained, target: Target) -> dict[str, Any]:
    """Grow the ancestor with a random head, its norms' eps as noted, and compare the logits."""
    side = ancestor.side(SIDE)
    old: Any = ancestor.model(side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        old.reset_classifier(10)
    new = ancestor.target(target, side, classes=10).eval()
    plan = wi.plan_projection(old, new)
    plan.validate().commit()
    notes = plan.report().notes
    if any("norms' eps" in note for note in notes):
        for module in new.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps *= ancestor.sizes[0] / target.width
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = _difference(new(images), old(images))
    return found | {"words": words("; ".join(notes))}


def _bert(path: Path, **sizes: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(path)
    for name, value in sizes.items():
        setattr(config, name, value)
    return BertModel(config).eval()


def _bert_target(path: Path, **sizes: int) -> dict[str, Any]:
    return _filled(path, _bert(path, **sizes))


def _bert_same(path: Path) -> dict[str, Any]:
    from transformers import BertModel

    model: Any = _bert(path)
    said = _filled(path, model)
    tokens = torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        old: Any = BertModel.from_pretrained(path).eval().float()
        same = _difference(model(tokens).last_hidden_state, old(tokens).last_hidden_state)
    return said | same


#: By what is done; those of a folder get its path, the others the ancestor.
CHECKS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "file, opened": lambda a: _opened(a.file),
    "file, opened with heads=": lambda a: _opened(a.file, heads=a.sizes[2]),
    "file, opened with wrong heads=": lambda a: _opened(a.file, heads=a.sizes[2] + 1),
    "file as a string": lambda a: _opened(str(a.file), heads=a.sizes[2]),
    "name misspelt": _misspelt,
    "file that is not there": lambda a: _opened("nothing.safetensors"),
    **{
        f"state dict with the prefix {prefix}": partial(
            lambda a, prefix: _opened(_state(a, prefix), heads=a.sizes[2]), prefix=prefix
        )
        for prefix in PREFIXES
    },
    "file into a target": lambda a: _filled(a.file, a.target(TARGET, a.side(SIDE))),
    "file with heads= into a target": lambda a: _filled(
        _open_file(a), a.target(TARGET, a.side(SIDE))
    ),
    "file into its own size": lambda a: _same(a, _open_file(a), _own_side(a)),
    "module into its own size": lambda a: _same(a, a.model(a.side(SIDE)), a.side(SIDE)),
    "file into its own size at another image size": lambda a: _same(a, _open_file(a), a.side(SIDE)),
    "folder, opened": _opened,
    "folder as a string": lambda path: _opened(str(path)),
    "folder's file alone with heads=": lambda path: _opened(path / "model.safetensors", heads=12),
    "folder into its own size": _bert_same,
    "folder into 4 layers of 256": lambda path: _bert_target(
        path, num_hidden_layers=4, hidden_size=256, num_attention_heads=8, intermediate_size=1024
    ),
    "folder into 12 layers": lambda path: _bert_target(path, num_hidden_layers=12),
    "folder into 6 layers of 512": lambda path: _bert_target(
        path, hidden_size=512, num_attention_heads=16, intermediate_size=2048
    ),
}
