import copy
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.inherit import Stub, randomise, small_vit
from helpers.models import draw
from torch import nn
from torchvision.models import VisionTransformer

from weightinit.anatomy import anatomy
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import BundleError, ProjectionError
from weightinit.inherit.running import (
    Running,
    _Attention,
    _open,
    captured,
    exact,
    first_tensor,
    watching,
)

IMAGES = [draw(3, 3, 16, 16, seed=seed) for seed in (1, 2)]


def running(model=None, batches=IMAGES):
    return Running(Ancestor.open(model or small_vit().double()), batches)


def said(run, number=0):
    """What the copy's head says while a batch runs."""
    found = []
    with watching({}, {run.module.head: found.append}):
        run.run(number)
    return found[0]


def test_a_batch_taken_apart_is_the_same_stream():
    model = small_vit(depth=3).double()
    run = running(model)
    after = []
    with watching({model.norm: after.append}), torch.no_grad():
        model(IMAGES[1])
    with torch.no_grad():
        x, blocks = run.trace(1)
        assert len(blocks) == 3
        for block in blocks:
            x = block(x)
    torch.testing.assert_close(x, after[0])
    logits = said(run)
    run.resume(0, x)
    assert not torch.allclose(logits, said_after(run, 0, x))
    torch.testing.assert_close(said_after(run, 1, x), said(run, 1))


def test_blocks_taken_apart_let_go_of_the_streams_that_they_were_given():
    run, given = running(small_vit(depth=3)), []
    with watching({block: lambda x: given.append(weakref.ref(x)) for block in run.module.blocks}):
        first, blocks = run.trace(0)
    assert len(blocks) == 3
    assert [x() is not None for x in given] == [True, False, False]
    assert given[0]() is first


def said_after(run, number, stream):
    found = []
    with watching({}, {run.module.head: found.append}):
        run.resume(number, stream)
    return found[0]


def test_the_copy_is_private_and_its_parts_are_views():
    model = small_vit().double()
    run = running(model)
    piece = run.anatomy.blocks[0]["attn.k.weight"]
    run.part(piece).zero_()
    qkv = run.module.blocks[0].attn.qkv
    assert run.owner(piece) is qkv and run.block(1) is run.module.blocks[1]
    assert not qkv.weight[24:48].any() and qkv.weight[:24].any()
    assert model.blocks[0].attn.qkv.weight[24:48].any()
    assert not any(module._forward_pre_hooks for module in run.module.modules())


def test_half_precision_runs_in_single():
    run = running(small_vit().bfloat16(), [image.half() for image in IMAGES])
    assert said(run).dtype == torch.float32
    assert exact(said(run)).dtype == torch.float64


def test_attention_of_torch_is_opened_and_computes_the_same():
    model = randomise(
        VisionTransformer(
            image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16,
            num_classes=5,
        )
    ).double()  # fmt: skip
    run = running(model)
    seen = []
    with watching({run.owner(run.anatomy.blocks[0]["attn.proj.weight"]): seen.append}):
        run.run(0)
    assert seen[0].shape == (3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(run.module(IMAGES[0]), model(IMAGES[0]))


def test_what_cannot_run_raises():
    model = small_vit()
    stub = Stub(model)
    stub.module = None
    with pytest.raises(ProjectionError, match="runs the ancestor, and it is only weights"):
        Running(stub, IMAGES)
    with pytest.raises(ProjectionError, match=r"cannot be run.*pass the module itself"):
        Running(Ancestor.open(model.state_dict(), heads=3), IMAGES)
    with pytest.raises(ProjectionError, match=r"batch 0 of shape \[\(2, 3, 9, 9\)\]"):
        running(batches=[torch.zeros(2, 3, 9, 9)]).run(0)
    with pytest.raises(ProjectionError, match="not finite"):
        running().check(torch.tensor([float("nan")]))
    run = running()
    run.module.blocks = nn.Sequential(*run.module.blocks, run.module.blocks[0])
    with pytest.raises(ProjectionError, match="has 2 blocks and runs 3"):
        run.trace(0)


def test_the_first_tensor_is_found_inside():
    assert first_tensor((None, ({}, IMAGES), 3)) is IMAGES[0]
    assert first_tensor((None, [IMAGES[1]])) is IMAGES[1]
    with pytest.raises(ProjectionError, match="not called with tensors"):
        first_tensor((None, 3))


def test_a_nan_that_attention_may_hide():
    model = small_vit()
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[0] = torch.nan
    with pytest.raises(BundleError, match=r"blocks\.0\.attn\.qkv\.bias of the ancestor holds NaN"):
        running(model)


def test_many_images_run_in_parts():
    images = draw(150, 3, 16, 16)
    run = running(batches=[images, images[:2]])
    assert [len(args[0]) for args, _ in run.calls] == [64, 64, 22, 2]
    assert torch.equal(torch.cat([args[0] for args, _ in run.calls[:3]]), images)


def test_plain_blocks_are_passed_over_once_they_were_seen():
    run, ran = running(), []
    with watching({block.attn: ran.append for block in run.module.blocks}), torch.no_grad():
        wanted, blocks = run.trace(1)
        assert len(ran) == 2
        found, again = run.trace(1, whole=False)
        assert len(ran) == 2 and torch.equal(found, wanted)
        assert torch.equal(again[0](found), blocks[0](wanted))
        run.resume(1, found)
    assert len(ran) == 4
    assert "forward" not in vars(run.module.blocks[0])


class Masked(nn.Module):
    """Blocks that are given a tensor besides the stream."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        x = self.model.patch_embed(x)
        for block in self.model.blocks:
            x = block(x, torch.zeros(1, 1, 1, x.shape[1]).to(x))
        return x


def test_blocks_that_are_given_more_are_not_passed_over():
    run, ran = running(), []
    run.module = Masked(run.module)
    run.trace(0)
    with watching({run.module.model.blocks[0].attn: ran.append}):
        run.trace(1, whole=False)
    assert len(ran) == 1


def test_the_module_around_pieces():
    run = running()
    pieces = run.anatomy.blocks[1]
    inside = [piece for piece in pieces.values() if piece.facts.branch == "mlp"]
    assert run.around(inside) is run.module.blocks[1].mlp
    assert run.around(pieces.values()) is run.module.blocks[1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "bool", "float", "heads", "padding", "both"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_in_the_open_computes_what_torch_does(batch_first, masks, bias):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        closed = nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first).double().eval()
    randomise(closed)
    query, memory = draw(2, 4, 12, seed=1), draw(2, 5, 12, seed=2)
    given = (query, memory, memory)
    given = given if batch_first else tuple(x.transpose(0, 1) for x in given)
    options = {
        "none": {},
        "bool": {"attn_mask": torch.eye(4, 5, dtype=torch.bool)},
        "float": {"attn_mask": draw(4, 5, seed=3)},
        "heads": {"attn_mask": draw(6, 4, 5, seed=3)},
        "padding": {"key_padding_mask": torch.eye(2, 5, dtype=torch.bool)},
        "both": {"key_padding_mask": draw(2, 5, seed=4), "attn_mask": draw(4, 5, seed=3)},
    }[masks]
    with torch.no_grad():
        ours, wanted = _Attention(closed)(*given, **options)[0], closed(*given, **options)[0]
    torch.testing.assert_close(ours, wanted)


def test_attention_that_is_causal_without_a_mask_is_refused_as_torch_does():
    closed = nn.MultiheadAttention(12, 3)
    x = torch.zeros(4, 2, 12)
    with pytest.raises(RuntimeError):
        closed(x, x, x, is_causal=True)
    with pytest.raises(ProjectionError, match="causal without a mask"):
        _Attention(closed)(x, x, x, is_causal=True)


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_what_a_bare_readout_is_given_is_not_captured(prefix):
    """It is no module: a hook would see the pictures."""
    model = small_vit()
    seen = anatomy(model)
    head = seen.outside["head.weight"]
    spec = replace(head.spec, name=f"{prefix}proj")
    blocks = tuple(
        {r: replace(p, spec=replace(p.spec, name=prefix + p.spec.name)) for r, p in b.items()}
        for b in seen.blocks
    )
    bare = SimpleNamespace(outside={"head.weight": replace(head, spec=spec)}, blocks=blocks)
    with pytest.raises(ProjectionError, match="is a parameter of the model itself"):
        with captured(model, bare):
            pass


def test_attention_that_adds_keys_is_refused():
    closed = nn.MultiheadAttention(12, 3, add_zero_attn=True)
    x = torch.zeros(4, 2, 12)
    with pytest.raises(ProjectionError, match="adds keys of its own"):
        _Attention(closed)(x, x, x)


class Threefold(nn.MultiheadAttention):
    def forward(self, *args, **options):
        return 3 * super().forward(*args, **options)[0], None


@pytest.mark.parametrize("how", ["subclass", "hook", "twice"])
def test_attention_of_ones_own_stays_what_it_is(how):
    sizes = {"num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    model = randomise(VisionTransformer(16, 8, 2, **sizes)).double()
    layers = list(model.encoder.layers)
    for layer in layers:
        if how == "subclass":
            layer.self_attention.__class__ = Threefold
        elif how == "hook":
            layer.self_attention.register_forward_hook(lambda m, given, out: (3 * out[0], None))
    if how == "twice":
        layers[1].self_attention = layers[0].self_attention
        copied = _open(copy.deepcopy(model))
        first, second = (layer.self_attention for layer in copied.encoder.layers)
        assert first is second
        assert isinstance(first, _Attention)
    else:
        copied = running(model).module
    with torch.no_grad():
        torch.testing.assert_close(copied(IMAGES[0]), model(IMAGES[0]))
