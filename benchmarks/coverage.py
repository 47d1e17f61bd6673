"""How many models anatomy explains and hypernetworks know, by family: writes docs/coverage.md.

python benchmarks/coverage.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from weightinit.anatomy import anatomy
from weightinit.errors import AnatomyError, ProjectionError
from weightinit.hypernet.graph import graph_of

TABLE = Path(__file__).parents[1] / "docs" / "coverage.md"
#: timm's modules of plain ViTs and ConvNeXts, as ``timm.list_models(module=...)`` counts them.
TIMM = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "deit",
    "beit",
    "eva",
    "naflexvit",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "cait",
    "convnext",
)
#: Classes of transformers; their names do not depend on the size, so a small one of each will do.
TRANSFORMERS = {
    "vit": ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
    "deit": ("DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    "bert": (
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ),
    "roberta": ("RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"),
    "gpt2": ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    "decision_transformer": ("DecisionTransformerModel",),
    "distilbert": (
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForQuestionAnswering",
    ),
    "dinov2": ("Dinov2Model", "Dinov2ForImageClassification"),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersForImageClassification",
    ),
    "dinov3_vit": ("DINOv3ViTModel",),
    "clip": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipVisionModel",),
    "audio-spectrogram-transformer": ("ASTModel", "ASTForAudioClassification"),
    "convnext": ("ConvNextModel", "ConvNextForImageClassification"),
    "convnextv2": ("ConvNextV2Model", "ConvNextV2ForImageClassification"),
}
#: Names that no installed library builds; tests prove them on renamed models.
FILES = (
    "DINOv2 and DINOv3 as published (chunked blocks, SwiGLU, registers, mask tokens)",
    "ConvNeXt and ConvNeXt V2 as published, and timm's `features_only`",
    "the vision towers of OpenAI's CLIP and of open_clip",
    "nanoGPT, and any GPT-2 whose matrices lie as those of linear layers do",
    "DiT and SiT as published, with their forks, and diffusers' `DiTTransformer2DModel`",
    "any of the above behind any prefix (`model.encoder.`, `0.auto_model.`, `encoder_q.`), or "
    "inside DDP, FSDP2, torch.compile or peft",
)
#: What was asked for and is not there.
MISSING = (
    "timm: Swin, Hiera, MViT, XCiT, VOLO, LeViT, MaxViT, EfficientFormer, every plain ConvNet but "
    "ConvNeXt",
    "transformers: BEiT, ViTMAE for pretraining (its `vit` works), VideoMAE, ViTDet, the text "
    "towers of CLIP and SigLIP, Swin, Segformer, ALBERT, ELECTRA, MPNet, ModernBERT, T5, Whisper, "
    "OPT, Llama, Qwen and the like",
    "open_clip: text towers, attention pools and ResNets",
    "diffusers: every transformer but DiT (PixArt, SD3, Flux), U-Nets",
    "MONAI's ViT: its own names take `rules=`",
)


@dataclass(frozen=True)
class Row:
    """The models of one family: how many there are, have a graph, and which are not explained."""

    library: str
    family: str
    total: int
    graphs: int
    left: tuple[str, ...] = ()


def models_of(library: str, family: str) -> dict[str, Callable[[], nn.Module]]:
    """Return a family's models by name, each to be built on the meta device."""
    if library == "timm":
        names = timm.list_models(module=family)
        return {name: lambda name=name: timm.create_model(name) for name in names}
    if library == "torch":
        return {
            f"TransformerEncoder ({'norm first' if first else 'norm last'})": lambda first=first: (
                _encoder(first)
            )
            for first in (False, True)
        }
    if library == "torchvision":
        names = [n for n in torchvision.models.list_models() if n.startswith("vit_")]
        return {name: lambda name=name: torchvision.models.get_model(name) for name in names}
    return {name: lambda name=name: _transformers_model(name) for name in TRANSFORMERS[family]}


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)


def _transformers_model(name: str) -> nn.Module:
    import transformers

    kind: Any = getattr(transformers, name)
    config = kind.config_class()
    for name in ("num_hidden_layers", "n_layers"):
        if hasattr(config, name):
            setattr(config, name, 2)
    return kind(config)


class _WithoutInit(TorchFunctionMode):
    """Skips random initialization, which does nothing on meta but takes most of the time."""

    skipped = frozenset(("clamp_", "erfinv_", "uniform_", "normal_", "mul_", "add_"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and getattr(func, "__name__", "") in self.skipped and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def unexplained(models: dict[str, Callable[[], nn.Module]]) -> dict[str, str]:
    """Return the models that anatomy does not explain, with the reason."""
    return looked_at(models)[0]


def looked_at(models: dict[str, Callable[[], nn.Module]]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the models that anatomy does not explain, and the others without a graph, and why."""
    left, refused = {}, {}
    for name, make in models.items():
        with torch.device("meta"), _WithoutInit():
            model = make()
        try:
            seen = anatomy(model)
        except AnatomyError as error:
            left[name] = str(error)
            continue
        if {spec.name for spec in seen.specs} != dict(model.named_parameters()).keys():
            left[name] = "parameters were lost"
        try:
            graph_of(seen)
        except ProjectionError as error:
            refused[name] = str(error)
    return left, refused


def render(rows: Iterable[Row]) -> str:
    """Return the page with its table."""
    rows = list(rows)
    lines = [
        "# Which models are explained",
        "",
        "A model is explained when every parameter has a role and an axis pattern, and all sizes",
        "agree. `Graphs` are models that hypernetworks predict. Written by",
        f"`python benchmarks/coverage.py` with timm {timm.__version__}; do not edit.",
        "",
        "| library | family | explained | graphs | models | what is left |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.library} | {row.family} | {row.total - len(row.left)} | {row.graphs} | "
        f"{row.total} | {', '.join(row.left) or '-'} |"
        for row in rows
    ]
    vits = [row for row in rows if row.library == "timm" and row.family != "convnext"]
    total = sum(row.total for row in vits)
    explained = total - sum(len(row.left) for row in vits)
    graphs = sum(row.graphs for row in vits)
    lines += [
        "",
        f"timm's plain ViTs together: {explained} of {total}, {graphs} with a graph. Without one "
        "are models",
        "with convolutions before or after their blocks, with blocks of class attention, and with",
        "two layers of attention in parallel.",
        "",
        "Explained by their names alone, whoever made the file:",
        "",
        *(f"- {line}" for line in FILES),
        "",
        "Not explained; `rules=` says what the library does not know:",
        "",
        *(f"- {line}" for line in MISSING),
    ]
    return "\n".join(lines) + "\n"


def families() -> list[tuple[str, str]]:
    """Return every library and family of the table, in its order."""
    return [
        *(("timm", family) for family in TIMM),
        ("torchvision", "vit"),
        ("torch", "encoder"),
        *(("transformers", family) for family in TRANSFORMERS),
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the page or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page would change")
    check = parser.parse_args(argv).check
    rows = []
    for library, family in families():
        models = models_of(library, family)
        left, refused = looked_at(models)
        for name, reason in (left | refused).items():
            sys.stderr.write(f"{name}: {reason}\n")
        graphs = len(models) - len(left) - len(refused)
        rows.append(Row(library, family, len(models), graphs, tuple(left)))
    page = render(rows)
    if check:
        return int(page != TABLE.read_text())
    TABLE.write_text(page)
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
