import pytest
import timm

from weightinit import ProjectionError
from weightinit.anatomy import anatomy


def seen(keep=()):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return anatomy(timm.models.VisionTransformer(**sizes, num_classes=5), keep=keep)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ((), set()),
        ("pos", {"pos_embed"}),
        (["head", "cls_token"], {"head.weight", "head.bias", "cls_token"}),
        (["attn.k.bias"], {"blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"}),
        ((x for x in ["blocks.1.norm1"]), {"blocks.1.norm1.weight", "blocks.1.norm1.bias"}),
    ],
)
def test_what_is_kept_by_name_role_or_the_start_of_one(keep, kept):
    assert seen(keep).kept == kept


def test_the_pieces_of_what_is_kept():
    roles = [piece.role for piece in seen("blocks.0.attn.qkv.bias").kept_pieces]
    assert roles == ["attn.q.bias", "attn.k.bias", "attn.v.bias"]


def test_another_size_keeps_the_same():
    kept = seen(["head.bias", "blocks.1.attn.qkv.bias"]).reshaped({"d": 8}, [3]).kept
    qkv = {f"blocks.{n}.attn.{x}.bias" for n in (1, 2) for x in "qkv"}
    assert kept == {"head.bias", *qkv}


@pytest.mark.parametrize(
    ("keep", "match"),
    [("nope", "keep='nope' names no parameter: use .* role of"), ([5], r"keep=\[5\]: pass a list")],
)
def test_what_is_not_there_is_refused(keep, match):
    with pytest.raises(ProjectionError, match=match):
        seen(keep)
