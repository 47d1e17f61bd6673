"""Roles mean the same everywhere: weights carried by role between libraries compute the same."""

import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F

import weightinit as wi
from weightinit import AnatomyError
from weightinit.anatomy import anatomy

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
BERT = {"intermediate_size": 20, "vocab_size": 50, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomized(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.double().eval()


def timm_vit(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    kwargs = sizes | {"num_classes": 5, "mlp_ratio": 2} | changes
    return randomized(timm.models.VisionTransformer(**kwargs))


def torchvision_vit():
    vit = torchvision.models.VisionTransformer(16, 4, 2, 3, 12, 24, num_classes=5)
    return randomized(vit)


def transformers_vit(**changes):
    config = transformers.ViTConfig(
        **SIZES,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
        num_labels=5,
        layer_norm_eps=1e-6,
        **changes,
    )
    return randomized(transformers.ViTForImageClassification(config))


def gpt2():
    config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=50, n_positions=16)
    return randomized(transformers.GPT2LMHeadModel(config))


@torch.no_grad()
def carry(source, target):
    """Copy every canonical piece of one model into the same role of another."""
    old, new = anatomy(source), anatomy(target)
    assert old.depth == new.depth
    places = [(old.outside, new.outside), *zip(old.blocks, new.blocks, strict=True)]
    for theirs, ours in places:
        assert theirs.keys() == ours.keys()
        for role, piece in ours.items():
            view = new.split(piece.spec, target.get_parameter(piece.spec.name))[role]
            other = theirs[role]
            assert (piece.size, piece.axes) == (other.size, other.axes)
            view.copy_(old.split(other.spec, source.get_parameter(other.spec.name))[role])


def logits(model, images):
    out = model(images)
    return getattr(out, "logits", out)


VITS = [timm_vit, torchvision_vit, transformers_vit]


@pytest.mark.parametrize("make", VITS[1:])
@torch.no_grad()
def test_vits_of_three_libraries_compute_the_same(make):
    images = torch.randn(2, 3, 16, 16).double()
    source = timm_vit()
    for old, new in ((source, make()), (make(), timm_vit())):
        before = logits(old, images)
        assert not torch.allclose(before, logits(new, images))
        carry(old, new)
        torch.testing.assert_close(logits(new, images), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", ["GluMlp", "SwiGLUPacked", "SwiGLU"])
@torch.no_grad()
def test_gates_of_glus_are_told_from_the_other_half(layer):
    images = torch.randn(2, 3, 16, 16).double()
    # The packed kinds halve their hidden size.
    ratio = 2 if layer == "SwiGLU" else 4
    kwargs = {"mlp_layer": getattr(timm.layers, layer), "mlp_ratio": ratio}
    model = timm_vit(act_layer=torch.nn.SiLU, **kwargs)
    other = timm_vit(act_layer=torch.nn.SiLU, mlp_layer=timm.layers.SwiGLU)
    carry(model, other)
    torch.testing.assert_close(other(images), model(images), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_split_projections_of_eva_are_those_of_a_fused_one():
    kwargs = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    kwargs |= {"use_abs_pos_emb": True, "num_classes": 5, "mlp_ratio": 2, "qkv_bias": False}
    fused = randomized(timm.models.Eva(qkv_fused=True, **kwargs))
    split = randomized(timm.models.Eva(qkv_fused=False, **kwargs))
    images = torch.randn(2, 3, 16, 16).double()
    carry(fused, split)
    torch.testing.assert_close(split(images), fused(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels_last", [True, False])
@torch.no_grad()
def test_linear_patch_embedding_of_naflexvit_is_a_convolution(channels_last):
    pytest.importorskip("timm", minversion="1.0.28", reason="one order of patches before")
    kwargs = {"embed_dim": 12, "num_heads": 3, "depth": 1, "patch_size": 4, "img_size": 16}
    model = randomized(timm.create_model("naflexvit_base_patch16_gap", **kwargs))
    model.embeds.channels_last = channels_last
    seen = anatomy(model)
    spec = seen.outside["patch.weight"].spec
    weight = seen.split(spec, model.get_parameter(spec.name))["patch.weight"]
    images = torch.randn(2, 3, 16, 16).double()
    expected = F.conv2d(images, weight, model.embeds.proj.bias, stride=4).flatten(2).mT
    patches, _ = timm.models.naflexvit.batch_patchify(images, (4, 4), channels_last=channels_last)
    torch.testing.assert_close(model.embeds.proj(patches), expected)
    assert seen.outside["pos"].axes == (("gh", "gw"), ("d",))
    assert (seen.traits.grid, seen.traits.pos_prefix) == ((16, 16), 0)


@pytest.mark.parametrize("fuse", [False, True])
@torch.no_grad()
def test_parallel_scaling_blocks(fuse):
    blocks = timm.models.vision_transformer

    class Parallel(blocks.ParallelScalingBlock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, fuse_out_proj=fuse)

    model = timm_vit(block_fn=Parallel)
    block, seen = model.blocks[1], anatomy(model)
    x = torch.randn(2, 5, 12).double()
    weights = {}
    for role, piece in seen.blocks[1].items():
        parameter = model.get_parameter(piece.spec.name)
        weights[role] = seen.split(piece.spec, parameter)[role]
    normed = F.layer_norm(x, (12,), weights["norm1.weight"], weights["norm1.bias"], eps=1e-6)
    q, k, v = (
        F.linear(normed, weights[f"attn.{p}.weight"], weights[f"attn.{p}.bias"])
        .unflatten(-1, (3, 4))
        .transpose(1, 2)
        for p in "qkv"
    )
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    hidden = F.gelu(F.linear(normed, weights["mlp.fc1.weight"], weights["mlp.fc1.bias"]))
    out = F.linear(attended, weights["attn.proj.weight"], weights["attn.proj.bias"])
    out = out + F.linear(hidden, weights["mlp.fc2.weight"], weights.get("mlp.fc2.bias"))
    torch.testing.assert_close(block(x), x + out)


@torch.no_grad()
def test_convolutions_of_gpt2_are_turned():
    model = gpt2()
    seen, conv = anatomy(model), model.transformer.h[1].attn.c_attn
    x = torch.randn(4, 12).double()
    parts = seen.split(seen.spec("transformer.h.1.attn.c_attn.weight"), conv.weight)
    out = torch.cat([F.linear(x, parts[f"attn.{p}.weight"]) for p in "qkv"], -1) + conv.bias
    torch.testing.assert_close(out, conv(x))
    proj = model.transformer.h[1].mlp.c_proj
    (part,) = seen.split(seen.spec("transformer.h.1.mlp.c_proj.weight"), proj.weight).values()
    assert part.shape == (12, 48)
    assert part.untyped_storage().data_ptr() == proj.weight.untyped_storage().data_ptr()
    hidden = torch.randn(4, 48).double()
    torch.testing.assert_close(F.linear(hidden, part, proj.bias), proj(hidden))


def bert(name, **changes):
    kind = "Roberta" if name.startswith("Roberta") else "Bert"
    config = getattr(transformers, f"{kind}Config")(**SIZES, **BERT, **changes)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize(
    ("make", "family", "library"),
    [
        (torchvision_vit, "vit", "torchvision"),
        (transformers_vit, "vit", "transformers"),
        (gpt2, "gpt2", "transformers"),
        (lambda: bert("BertModel"), "bert", "transformers"),
        (lambda: bert("BertForPreTraining"), "bert", "transformers"),
        (lambda: bert("BertForSequenceClassification"), "bert", "transformers"),
        (lambda: bert("RobertaForMaskedLM"), "bert", "transformers"),
        (lambda: bert("RobertaForSequenceClassification"), "bert", "transformers"),
    ],
)
def test_canonical_axes_are_the_same_in_every_library(make, family, library):
    model, reference = make(), anatomy(timm_vit())
    for source in (model, model.state_dict()):
        seen = anatomy(source, sizes={"h": 3})
        assert (seen.family, seen.depth, seen.sizes["h"], seen.sizes["k"]) == (family, 2, 3, 4)
        assert seen.blocks[0].keys() == reference.blocks[0].keys()
        for block in seen.blocks:
            for role, piece in block.items():
                assert piece.axes == reference.blocks[0][role].axes
        shared = seen.outside.keys() & reference.outside.keys()
        assert {"pos", "norm.weight"} <= shared or family == "bert"
        for role in shared:
            assert seen.outside[role].axes == reference.outside[role].axes
    assert anatomy(model).traits.library == library
    with pytest.raises(AnatomyError, match="head count"):
        anatomy(model.state_dict())


def test_tied_embeddings_of_language_models():
    assert anatomy(gpt2()).spec("lm_head.weight").role == "embed.token.weight"
    seen = anatomy(bert("BertForPreTraining"))
    assert seen.spec("cls.predictions.decoder.weight").role == "embed.token.weight"
    assert seen.outside["pos"].axes == (("t",), ("d",))
    untied = anatomy(bert("BertForMaskedLM", tie_word_embeddings=False))
    assert untied.outside["head.weight"].size == (50, 12)


def test_names_of_transformers_4():
    model = transformers_vit()
    pairs = [
        ("vit.layers.", "vit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in pairs:
            name = name.replace(new, old)
        state[name] = tensor
    seen = anatomy(state, sizes={"h": 3})
    for old, new in zip(seen.specs, anatomy(model).specs, strict=True):
        assert (old.role, old.pattern, old.block) == (new.role, new.pattern, new.block)


def test_distilled_deit_of_transformers():
    config = transformers.DeiTConfig(**SIZES, intermediate_size=24, image_size=16, patch_size=4)
    seen = anatomy(transformers.DeiTForImageClassificationWithTeacher(config))
    assert seen.outside["token.dist"].size == (1, 12)
    assert seen.outside["head_dist.weight"].axes == (("n",), ("d",))
    assert (seen.traits.prefix_tokens, seen.traits.pos_prefix) == (2, 2)


def test_shared_biases_of_beit_are_known():
    model = timm.models.beit.Beit(
        img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=3, use_shared_rel_pos_bias=True
    )
    assert anatomy(model).outside["rel_pos.table"].size == (7 * 7 + 3, 3)
    assert anatomy(model.state_dict(), sizes={"h": 3}).outside["rel_pos.table"].axes[1] == ("h",)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_encoder_of_torch(norm_first):
    def encoder(depth, width=16):
        layer = torch.nn.TransformerEncoderLayer(
            width, 2, 2 * width, batch_first=True, norm_first=norm_first
        )
        return torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()

    old, new = encoder(3), encoder(2)
    seen = anatomy(old)
    assert (seen.family, seen.depth, seen.sizes["h"], seen.sizes["k"]) == ("encoder", 3, 2, 8)
    assert (seen.traits.form == "pre_norm") == norm_first
    wi.project_from(old, new, method=wi.WeightSelection())
    expected = old.layers[1].self_attn.in_proj_weight
    assert torch.equal(new.layers[1].self_attn.in_proj_weight, expected)
    deeper = encoder(4)
    wi.project_from(old, deeper)
    x = torch.randn(2, 5, 16)
    assert deeper(x).std(0).gt(1e-3).any() and bool(torch.isfinite(deeper(x)).all())
