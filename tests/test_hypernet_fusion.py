"""PITH: generated projections of an ancestor, as released and as it is by default."""

import pytest
import timm
import torch
from helpers.hypernet_reference import hypernet, torchvision_vit
from helpers.models import vit

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.fusion import Fusion
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.network import Pass
from weightinit.hypernet.predict import Prediction
from weightinit.init.operators import select_indices


def fused(net, target, ancestor, **options):
    with torch.no_grad():
        return Prediction(net, wi.anatomy(target), ancestor=Ancestor.open(ancestor), **options)


def dense_pq(net, seen, key, left, right):
    """P and Q of one node, multiplied out."""
    graph = graph_of(seen)
    index = next(i for i, n in enumerate(graph.nodes) if n.block == key[0] and key[1] in n.roles)
    with torch.no_grad():
        run = Pass(net, net.encode(graph))
        p, q = run.pair([index], left, right)
    return p.dense()[0], q.dense()[0]


def original(net, seen):
    """What the other path predicts."""
    with torch.no_grad():
        return net(graph_of(seen))


@pytest.mark.parametrize(
    "changes",
    [{}, {"separate": True}, {"pathway": "shared"}, {"pathway": "shared", "separate": True},
     {"expansion": "both"}, {"expansion": "none"}],
)  # fmt: skip
def test_it_is_the_papers_equation(changes):
    """W = a P W_P Q + (1 - a) W_pred, scaled; q, k and v are one matrix, as released."""
    net, old, new = hypernet("pith", **changes), vit(depth=2, embed_dim=32), vit(depth=2)
    before, seen = wi.anatomy(old), wi.anatomy(new)
    found, other = fused(net, new, old).weights, original(net, seen)
    a = torch.sigmoid(net.fusion_weight).detach()
    source = Ancestor.open(old)
    stacked = {
        "attn.qkv": [f"attn.{part}.weight" for part in "qkv"],
        "mlp.fc1": ["mlp.fc1.weight"],
        "mlp.fc2": ["mlp.fc2.weight"],
        "attn.proj": ["attn.proj.weight"],
    }
    for block in range(2):
        for roles in stacked.values():
            whole = torch.cat([source.part(before.blocks[block][role]) for role in roles])
            own = torch.cat([other[block, role] for role in roles])
            scale = (2 / own.shape[1]) ** 0.5
            (m, n), (rows, columns) = whole.shape, own.shape
            p, q = dense_pq(net, seen, (block, roles[0]), (rows, m), (n, columns))
            expected = a * scale * (p @ whole @ q) + (1 - a) * own
            got = torch.cat([found[block, role] for role in roles])
            torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_p_and_q_are_crops_of_one_matrix_unless_separate():
    seen = wi.anatomy(vit(depth=1))
    for separate in (False, True):
        net = hypernet("pith", separate=separate)
        p, q = dense_pq(net, seen, (0, "mlp.fc1.weight"), (16, 16), (16, 16))
        assert torch.allclose(p, q) != separate


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_any_number_of_heads(heads):
    net = hypernet("pith")
    model = vit(depth=2, embed_dim=24 if heads != 1 else 20, num_heads=min(heads, 4))
    values = fused(net, model, vit(depth=2, embed_dim=48, num_heads=heads)).parameters()
    assert all(value.isfinite().all() for value in values.values())


def test_positions_as_released_are_one_off():
    """The class token's row goes to patch 0, and the last patch has no place."""
    net = hypernet("pith", expansion="none")
    old, new = torchvision_vit(1, 48, size=32, seed=1), torchvision_vit(1, 64, size=32)
    rows = old.encoder.pos_embedding.detach()[0]
    a = torch.sigmoid(net.fusion_weight).detach()
    seen = wi.anatomy(new)
    p, q = dense_pq(net, seen, (-1, "pos"), (1, 1), (48, 64))
    other = original(net, seen)[-1, "pos"]
    for faithful, kept in ((True, rows[:4]), (False, rows[1:])):
        found = fused(net, new, old, faithful=faithful).weights[-1, "pos"]
        torch.testing.assert_close(found, a * p * (kept @ q) + (1 - a) * other)


def test_tokens_and_their_positions_are_projected():
    net = hypernet("pith", expansion="none")
    changes = {"class_token": True, "global_pool": "token", "reg_tokens": 2}
    old, new = vit(embed_dim=32, **changes), vit(**changes)
    with torch.no_grad():
        for name in ("cls_token", "reg_token", "pos_embed"):
            torch.nn.init.normal_(getattr(old, name))
    found = fused(net, new, old)
    values = found.parameters()
    p, q = dense_pq(net, wi.anatomy(new), (-1, "pos"), (1, 1), (32, 16))
    around = torch.sigmoid(net.fusion_weight).detach() * p * q
    torch.testing.assert_close(values["cls_token"], old.cls_token.detach() @ around)
    torch.testing.assert_close(values["reg_token"], old.reg_token.detach() @ around)
    torch.testing.assert_close(values["pos_embed"][:, :3], old.pos_embed.detach()[:, :3] @ around)
    texts = {recipe.spec.name: recipe.source for recipe in found.plan().recipes(found.target)}
    assert "projected for tokens" in texts["pos_embed"] and "projected" in texts["cls_token"]
    bare = fused(net, new, vit(embed_dim=32))
    texts = {recipe.spec.name: recipe.source for recipe in bare.plan().recipes(bare.target)}
    assert "zeros for tokens" in texts["pos_embed"] and "trunc_normal" in texts["cls_token"]


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 9},
        {"depth": 1},
        {"img_size": 16},
        {"img_size": 12, "patch_size": 4},
        {"in_chans": 3},
        {"num_heads": 4},
        {"embed_dim": 64, "num_heads": 8},
        {"class_token": True, "global_pool": "token"},
        {"reg_tokens": 4},
        {"init_values": 1e-3},
        {"num_classes": 3},
        {"mlp_ratio": 3},
        {"mlp_ratio": 1},
    ],
)
def test_targets_of_any_size(changes):
    """On which the released code crashes."""
    net, new, old = hypernet("pith"), vit(**changes), vit(depth=4, embed_dim=48, num_heads=4)
    found = fused(net, new, old)
    values = found.parameters()
    assert values.keys() == dict(new.named_parameters()).keys()
    for name, parameter in new.named_parameters():
        assert values[name].shape == parameter.shape and values[name].isfinite().all()


def test_depth():
    """Evenly chosen blocks of a deeper ancestor, blocks in a row of a shallower one."""
    net = hypernet("pith")

    def blocks(old, new, **options):
        target = wi.anatomy(vit(depth=new))
        source = Ancestor.open(vit(depth=old))
        return Fusion(net, graph_of(target), target, source, **options).blocks

    assert blocks(6, 3) == select_indices(6, 3).tolist()
    assert blocks(2, 4) == [0, 0, 1, 1]
    assert blocks(6, 3, faithful=True) == [0, 1, 2]
    with pytest.raises(ProjectionError, match="the target has 4 blocks and the ancestor 2"):
        blocks(2, 4, faithful=True)


def test_a_larger_grid_than_the_ancestors():
    old, new = torchvision_vit(1, 48, size=32), torchvision_vit(1, 64, size=64)
    with pytest.raises(ProjectionError, match="5 positions, the target a grid of 4x4"):
        fused(hypernet("pith"), new, old, faithful=True)
    assert fused(hypernet("pith"), new, old).parameters()


def test_one_ancestor_after_another():
    """The released code keeps the first one."""
    net, new = hypernet("pith"), vit()
    first, second = vit(embed_dim=32), vit(embed_dim=32)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.1
    one, two, again = (fused(net, new, old).parameters() for old in (first, second, first))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], two[name])


def test_any_timm_ancestor_and_torchvision_names():
    net = hypernet("pith")
    for name in ("deit3_small_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"):
        size = {} if "dinov3" in name else {"img_size": 32}
        old = timm.create_model(name, depth=2, embed_dim=48, num_heads=4, **size)
        new = timm.create_model(name, depth=3, embed_dim=24, num_heads=2, **size)
        assert fused(net, new, old).parameters()
    assert fused(net, torchvision_vit(2, 32, size=32), vit(embed_dim=48, in_chans=3)).parameters()


def test_an_ancestor_of_other_blocks_is_refused():
    changes = {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 28}
    new = timm.create_model("eva02_tiny_patch14_224", **changes)
    with pytest.raises(ProjectionError, match=r"the ancestor has no .*mlp\.up\.weight"):
        fused(hypernet("pith"), new, vit())


def test_the_ancestor_is_not_changed():
    old = vit(embed_dim=32)
    before = {name: value.clone() for name, value in old.state_dict().items()}
    values = fused(hypernet("pith"), vit(), old).parameters()
    for value in values.values():
        value.zero_()
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())


def test_the_first_blocks_as_released():
    old, seen = Ancestor.open(vit(depth=5, embed_dim=32)), wi.anatomy(vit(depth=2))
    net = hypernet("pith", alignment="first")
    assert Fusion(net, graph_of(seen), seen, old).blocks == [0, 1]
    assert Fusion(hypernet("pith"), graph_of(seen), seen, old).blocks == [0, 4]
