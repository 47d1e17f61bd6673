"""The goal in numbers: every parameter of timm's plain ViTs and ConvNeXts has a role."""

import importlib.util
import sys
from pathlib import Path

import pytest
import timm
import torch

from weightinit.anatomy import anatomy

pytest.importorskip("transformers")

PATH = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
coverage = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = coverage
spec.loader.exec_module(coverage)

#: Models of timm 1.0.31, all of them explained.
COUNTS = {
    "vision_transformer": 163,
    "vision_transformer_hybrid": 14,
    "deit": 16,
    "beit": 7,
    "eva": 65,
    "naflexvit": 14,
    "vision_transformer_relpos": 14,
    "vision_transformer_sam": 4,
    "cait": 10,
    "convnext": 31,
}
#: Those of them, and of the other libraries' families, of which hypernetworks have no graph.
GRAPHLESS = {
    ("timm", "vision_transformer"): 2,
    ("timm", "vision_transformer_hybrid"): 14,
    ("timm", "vision_transformer_sam"): 3,
    ("timm", "cait"): 10,
    ("timm", "convnext"): 31,
    ("transformers", "vit"): 2,
    ("transformers", "deit"): 1,
    ("transformers", "bert"): 6,
    ("transformers", "roberta"): 3,
    ("transformers", "decision_transformer"): 1,
    ("transformers", "distilbert"): 2,
    ("transformers", "dinov2"): 2,
    ("transformers", "dinov2_with_registers"): 2,
    ("transformers", "dinov3_vit"): 1,
    ("transformers", "convnext"): 2,
    ("transformers", "convnextv2"): 2,
}
CHUNK = 20
SWEEP = [
    (library, family, start)
    for library, family in coverage.families()
    for start in range(0, len(coverage.models_of(library, family)), CHUNK)
]


@pytest.mark.parametrize(("library", "family"), coverage.families())
def test_one_model_in_ten_is_explained(library, family):
    if family == "dinov3_vit":
        pytest.importorskip("transformers", minversion="4.56")
    names = list(coverage.models_of(library, family).items())[::10]
    assert names
    assert coverage.unexplained(dict(names)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("library", "family", "start"), SWEEP)
def test_every_model_is_explained(library, family, start):
    names = list(coverage.models_of(library, family).items())[start : start + CHUNK]
    assert names
    assert coverage.unexplained(dict(names)) == {}


@pytest.mark.skipif(timm.__version__ != "1.0.31", reason="counted with timm 1.0.31")
def test_the_table_is_the_one_generated():
    rows = []
    for library, family in coverage.families():
        left_out = GRAPHLESS.get((library, family), 0)
        total = len(coverage.models_of(library, family))
        assert total == (COUNTS[family] if library == "timm" else total)
        rows.append(coverage.Row(library, family, total, total - left_out))
    assert sum(COUNTS.values()) == 307 + 31
    assert coverage.render(rows) == coverage.TABLE.read_text()


def test_what_is_left_is_reported():
    models = {"swin": lambda: timm.create_model("swin_tiny_patch4_window7_224")}
    left = coverage.unexplained(models)
    assert "any model known" in left["swin"]
    page = coverage.render([coverage.Row("timm", "swin", 2, 0, tuple(left))])
    assert "| timm | swin | 1 | 0 | 2 | swin |" in page


NAMES = [
    "eva02_large_patch14_448",
    "vit_5b_patch16_sapiens2",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_dlittle_patch16_reg1_gap_256",
    "vit_base_patch16_18x2_224",
    "vit_base_r26_s32_224",
    "samvit_base_patch16",
    "cait_s24_224",
    "naflexvit_base_patch16_siglip",
    "convnext_large_mlp",
    "convnext_nano_ols",
]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_unusual_models_cover_them(name):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):
        model = timm.create_model(name)
    seen = anatomy(model)
    blocks = [*seen.blocks, *(block for _, block in seen.extra_blocks)]
    pieces = [*seen.outside.values(), *(p for block in blocks for p in block.values())]
    assert sum(torch.Size(piece.size).numel() for piece in pieces) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    for spec in seen.specs:
        views = seen.split(spec, model.get_parameter(spec.name))
        assert all(view._base is not None or len(views) == 1 for view in views.values())
