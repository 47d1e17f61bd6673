import functools
import json

import pytest
import timm
import torch
import torchvision
from helpers.inherit import Stub, bert, fill, logits, narrow_eps, randomise, says, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from timm.layers import SwiGLU

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.lemon import LEMON
from weightinit.plan import Plan


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def test_the_published_code_is_reproduced(golden):
    described = json.loads((golden / "lemon_a.json").read_text())
    tensors = load_file(golden / "lemon_a.safetensors")

    def build(size):
        return timm.models.VisionTransformer(
            img_size=16, patch_size=4, num_classes=10, mlp_ratio=4, **size
        ).eval()

    ancestor, model = build(described["src"]), build(described["dst"])
    method = LEMON(depth=described["depth_inflate"], init=part(tensors, "random."))
    fill(model, Stub(ancestor, part(tensors, "source.")), method)
    for name, value in part(tensors, "target.").items():
        torch.testing.assert_close(model.get_parameter(name), value, atol=1e-6, rtol=0, msg=name)
    with torch.no_grad():
        found = model(tensors["check.input"])
    torch.testing.assert_close(found, tensors["check.logits"], atol=1e-5, rtol=0)


KINDS = {
    "token": {},
    "avg": {"class_token": False, "global_pool": "avg"},
    "qkv_bias": {"qkv_bias": False},
    "init_values": {"init_values": 0.1},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"mlp_layer": SwiGLU},
    "rms": {"norm_layer": "rmsnorm", "pre_norm": True, "init_values": 0.1},
}


@given(
    st.integers(1, 3), st.integers(0, 4), st.sampled_from([4, 6]), st.integers(0, 3),
    st.sampled_from([1.0, 1.5, 2.0]), st.sampled_from([2.0, 2.5, 3.0]),
    st.integers(1, 3), st.integers(0, 5), st.sampled_from(["proj", "net2net"]),
    st.sampled_from(["copymix_cancel", "copymix_zero"]), st.sampled_from(sorted(KINDS)),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_any_larger_size_keeps_the_function(
    heads, more_heads, dim, more_dims, ratio, new_ratio, depth, deeper, mode, identity, kind
):
    if kind == "qk_norm":
        more_dims = 0
    options = KINDS[kind]
    old = small_vit(heads * dim, heads, depth, mlp_ratio=ratio, **options).double()
    width = (heads + more_heads) * (dim + more_dims)
    sizes = {"width": width, "heads": heads + more_heads, "depth": depth + deeper}
    new = small_vit(**sizes, mlp_ratio=new_ratio, **options).double()
    method = LEMON(mode=mode, depth=identity)
    report = fill(new, old, method, seed=width)
    (note,) = method.plan(Stub(old), anatomy(new)).notes
    assert "not lossless" not in note and report.counts["fresh"] == 0
    assert ("eps" in note) == bool(width % (heads * dim))
    narrow_eps(new, note)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)


def test_without_its_eps_the_error_is_that_of_the_eps():
    """First order in eps: a tenth of it is a tenth of the error, and none with the eps set."""
    errors = []
    for eps in (1e-5, 1e-6):
        old, new = small_vit().double(), small_vit(40, 5, 3).double()
        for model in (old, new):
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = eps
        method = LEMON()
        fill(new, old, method)
        wanted = logits(old)
        errors.append(float((logits(new) - wanted).abs().max() / wanted.abs().max()))
        (note,) = method.plan(Stub(old), anatomy(new)).notes
        assert note.endswith("if you set the norms' eps to 0.6 of the ancestor's")
        narrow_eps(new, note)
        torch.testing.assert_close(logits(new), wanted, atol=1e-10, rtol=0)
    assert 1e-8 < errors[1] < 1e-5
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.01)


def test_the_stream_holds_copies_and_their_mean():
    old, new = small_vit(24, 3, 1), small_vit(56, 7, 1)
    fill(new, old, LEMON())
    for wide, narrow in (
        (new.pos_embed[0], old.pos_embed[0]),
        (new.cls_token[0], old.cls_token[0]),
        (new.patch_embed.proj.bias[None], old.patch_embed.proj.bias[None]),
        (new.blocks[0].mlp.fc2.bias[None], old.blocks[0].mlp.fc2.bias[None]),
    ):
        assert torch.equal(wide[:, :48], narrow.tile(1, 2))
        mean = narrow.mean(1, keepdim=True).expand(-1, 8)
        torch.testing.assert_close(wide[:, 48:], mean)
    gain, scale = new.norm.weight, (48 / 56) ** 0.5
    torch.testing.assert_close(gain[:48], old.norm.weight.tile(2) * scale)
    assert gain[48:].abs().max() <= scale and gain[48:].unique().numel() == 8
    assert torch.equal(new.norm.bias, torch.cat([old.norm.bias.tile(2), torch.zeros(8)]))


def test_weights_are_the_random_init_moved_alike_for_every_copy():
    """W' = R + (W - sum R) / k: what is added to R is one number for all copies of a channel."""
    old, new, random = small_vit(24, 3, 1), small_vit(56, 7, 1), small_vit(56, 7, 1)
    init = {k: v.detach().clone() for k, v in random.state_dict().items()}
    fill(new, old, LEMON(init=init))
    blocks = [model.blocks[0] for model in (new, random, old)]
    for layer, copied in (("attn.qkv", 48), ("mlp.fc1", 48), ("attn.proj", 56), ("mlp.fc2", 224)):
        wide, drawn, narrow = (block.get_submodule(layer).weight for block in blocks)
        size, moved = narrow.shape[1], wide - drawn
        channel = torch.arange(copied) % size
        for i in range(size):
            same = moved[:, :copied][:, channel == i]
            torch.testing.assert_close(same, same[:, :1].expand_as(same), atol=1e-6, rtol=0)
        sums = torch.zeros(len(wide), size).index_add_(1, channel, wide[:, :copied])
        if layer == "mlp.fc1":
            wanted = narrow[torch.arange(224) % 96]
            torch.testing.assert_close(sums, wanted, atol=1e-6, rtol=0)
        assert torch.equal(wide[:, copied:], drawn[:, copied:])


def test_copies_differ_but_in_net2net_mode():
    old = small_vit(24, 3, 1)
    for mode, equal in (("proj", False), ("net2net", True)):
        new = small_vit(48, 6, 1)
        fill(new, old, LEMON(mode=mode))
        first, second = new.blocks[0].mlp.fc1.weight.chunk(2, dim=1)
        assert torch.equal(first, second) == equal
        torch.testing.assert_close((first + second)[:96], old.blocks[0].mlp.fc1.weight)


def test_added_blocks_cancel_where_copies_are_many():
    old = small_vit(24, 3, 1)
    zero, cancel, alone = small_vit(56, 7, 2), small_vit(56, 7, 2), small_vit(24, 3, 2)
    fill(zero, old, LEMON(depth="copymix_zero"))
    fill(cancel, old, LEMON())
    fill(alone, old, LEMON())
    layers = ("attn.proj", "mlp.fc2")
    for layer in layers:
        assert not zero.blocks[1].get_submodule(layer).weight.any()
        assert cancel.blocks[1].get_submodule(layer).weight.any()
        assert not cancel.blocks[1].get_submodule(layer).bias.any()
        assert not alone.blocks[1].get_submodule(layer).weight.any()
    heads = cancel.blocks[1].attn.proj.weight.view(56, 7, 8)
    sums = torch.stack([heads[:, i::3].sum(1) for i in range(3)])
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pre_norm": True}, "norm_pre.weight writes into the stream"),
        ({"scale_mlp_norm": True}, "mlp.norm.weight average over"),
        ({"qk_norm": True}, "attn.q_norm.weight, attn.k_norm.weight average over"),
        ({"norm_layer": "simplenorm"}, "a SimpleNorm over more channels"),
    ],
)
def test_what_norms_break_is_said_and_true(options, said):
    old, new = (small_vit(*size, **options).double() for size in ((24, 3), (60, 5)))
    report = fill(new, old, LEMON())
    (note,) = LEMON().plan(Stub(old), anatomy(new)).notes
    assert said in note and "not lossless" in note
    assert not any("lossless" in row.source for row in report.rows)
    narrow_eps(new, "eps to 0.8 of the ancestor's")
    assert (logits(new) - logits(old)).abs().max() > 1e-8


def test_gpt2_with_a_tied_head_is_exact():
    transformers = pytest.importorskip("transformers")

    def build(width, heads, layers, eps):
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=width, n_layer=layers, n_head=heads,
            layer_norm_epsilon=eps,
        )  # fmt: skip
        return randomise(transformers.GPT2LMHeadModel(config)).double()

    old, new = build(12, 3, 2, 1e-5), build(28, 7, 3, 1e-5 * 24 / 28)
    seen, tokens = anatomy(new), torch.arange(8)[None]
    Plan(new, seen, LEMON().plan(Stub(old), seen).recipes(seen), source="stub").commit()
    with torch.no_grad():
        wanted, found = old(tokens).logits, new(tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("library", ["torchvision", "transformers"])
def test_other_libraries_vits_are_exact(library):
    def build(width, heads, depth, eps):
        if library == "torchvision":
            return torchvision.models.VisionTransformer(
                16, 8, depth, heads, width, 3 * width, num_classes=5,
                norm_layer=functools.partial(torch.nn.LayerNorm, eps=eps),
            )  # fmt: skip
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, num_labels=5,
            intermediate_size=3 * width, image_size=16, patch_size=8, layer_norm_eps=eps,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config)

    old = randomise(build(12, 3, 2, 1e-6)).double()
    new = build(32, 8, 3, 1e-6 * 24 / 32).double().eval()
    fill(new, old, LEMON())
    (note,) = LEMON().plan(Stub(old), anatomy(new)).notes
    assert note == "LEMON is lossless here if you set the norms' eps to 0.75 of the ancestor's"
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        wanted, found = (getattr(out, "logits", out) for out in (old(image), new(image)))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_a_seed_decides_and_another_differs():
    old = small_vit()
    values = []
    for seed in (1, 1, 2):
        new = small_vit(40, 5)
        fill(new, old, LEMON(), seed=seed)
        values.append(new.blocks[0].attn.qkv.weight)
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_values_are_checked():
    with pytest.raises(ProjectionError, match="mode='aki'"):
        LEMON(mode="aki")
    with pytest.raises(ProjectionError, match="depth='stack'"):
        LEMON(depth="stack")
    with pytest.raises(ProjectionError, match=r"init= lacks blocks.0.attn.qkv.weight"):
        fill(small_vit(48, 6), small_vit(), LEMON(init={"head.weight": torch.zeros(5, 48)}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["auto", "lemon", "net2net", "hypercloning", "bert2bert"])
def test_a_masked_language_model_grows_without_loss(method, tied):
    """A tied head reads copies of the stream's channels as often as there are copies."""
    old, new = bert(16, tied), bert(32, tied)
    plan = wi.plan_projection(old, new, method=method)
    plan.commit()
    assert plan.report().notes[-1].endswith(" is lossless here")
    torch.testing.assert_close(says(new), says(old), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "sizes", [{"embed_dim": 40, "num_heads": 5}, {"embed_dim": 48, "num_heads": 3}, {"depth": 4}]
)
def test_an_attention_pool_grows_to_any_size(sizes):
    """Its queries and its head read a stream that no norm has freed of its mean."""
    base = {"img_size": 16, "patch_size": 8, "num_classes": 5, "embed_dim": 24, "num_heads": 3}
    old, new = (
        randomise(timm.create_model("vit_base_patch16_siglip_224", **{**base, "depth": 2, **more}))
        for more in ({}, sizes)
    )
    (note,) = fill(new.double(), old.double(), LEMON()).notes
    assert note.startswith("LEMON is lossless here")
    narrow_eps(new, note)
    torch.testing.assert_close(logits(new), logits(old), atol=1e-10, rtol=0)
