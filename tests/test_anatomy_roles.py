import pytest
import timm
import torch

from weightinit.anatomy import anatomy, facts, scale_of


@pytest.mark.parametrize(
    ("role", "kind", "start"),
    [
        ("norm1.weight", "norm", "ones"),
        ("norm1.bias", "norm", "zeros"),
        ("attn.q_norm.weight", "norm", "ones"),
        ("stem.layer1.0.bn2.weight", "norm", "ones"),
        ("stem.0.conv.weight", "stem", "kaiming"),
        ("ls2", "scale", "ones"),
        ("attns.1.ls", "scale", "ones"),
        ("attn.rel_table", "table", "zeros"),
        ("attn.rel_pos_h", "table", "zeros"),
        ("rel_pos.table", "table", "zeros"),
        ("mlp.grn.weight", "matrix", "zeros"),
        ("attn.talk_w.weight", "matrix", "identity"),
        ("attn.proj.bias", "bias", "zeros"),
        ("token.cls", "token", "trunc_normal"),
        ("pos", "position", "trunc_normal"),
        ("embed.token.weight", "embedding", "trunc_normal"),
        ("head_dist.weight", "head", "trunc_normal"),
        ("adapter.weight", "matrix", "trunc_normal"),
    ],
)
def test_kinds_and_starts(role, kind, start):
    assert (facts(role).kind, facts(role).start) == (kind, start)


def test_neutral_values_are_those_at_which_nothing_happens():
    neutral = {role: facts(role).neutral for role in ("ls1", "mlp.grn.bias", "attn.rel_table")}
    assert neutral == {"ls1": 1.0, "mlp.grn.bias": 0.0, "attn.rel_table": 0.0}
    assert facts("attn.q.weight").neutral is None and facts("attn.q.bias").neutral == 0.0


def test_a_layer_scale_stands_behind_the_end_of_its_branch():
    block = {"ls1": "a", "ls2": "b", "attns.0.ls": "c"}
    ends = ("attn.proj.weight", "mlp.fc2.bias", "attns.0.proj.weight", "mlp.fc1.weight")
    assert [scale_of(role, block) for role in ends] == ["a", "b", "c", None]
    # A parallel block has one for both of its branches.
    assert scale_of("mlp.fc2.weight", {"ls1": "a"}) == "a"


def test_sides_follow_from_role_and_axis():
    assert [facts("mlp.fc1.weight").side(dim, 2) for dim in (0, 1)] == ["rows", "columns"]
    assert facts("embed.token.weight").side(1, 2) == "rows"
    assert facts("norm2.weight").side(0, 1) == "gain" and facts("norm2.bias").side(0, 1) == "rows"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224", "convnextv2_atto"])
def test_ends_are_what_writes_into_the_stream(name):
    with torch.device("meta"):
        seen = anatomy(timm.create_model(name))
    for block in seen.all_blocks:
        ends = [role for role, piece in block.items() if piece.ends]
        assert any(role.startswith("mlp.fc2") for role in ends)
        assert not any("fc1" in role or "qkv" in role for role in ends)
