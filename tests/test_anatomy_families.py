"""Families under other names: at full size a projection computes what its ancestor computes.

Every parameter is moved away from where it starts. The published files' names are made from
timm's, which are proven; the other libraries run their own models.
"""

import re

import pytest
import timm
import torch
from torch import nn

import weightinit as wi

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def moved(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def vit(name="vit_tiny_patch16_224", **changes):
    return timm.create_model(name, **(SIZE | {"num_classes": 5} | changes))


def renamed(model, *pairs):
    """A state dict with other names: each pair is a pattern and what it becomes."""
    state = {}
    for name, value in model.state_dict().items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        state[name] = value
    return state


def same(state, old, new, x=None, *, heads=4):
    wi.project_from(wi.Ancestor.open(state, heads=heads), new)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(new(x), old(x), rtol=1e-5, atol=1e-5)


# The published files.

DINOV2 = ((r"^reg_token", "register_tokens"), (r"(\.mlp)\.fc1\b", r"\1.fc1"))
CHUNKED = (r"^blocks\.(\d+)\.", r"blocks.0.\1.")


@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_files(chunked):
    old = moved(vit(init_values=1e-5, num_classes=0))
    state = renamed(old, *DINOV2, *[CHUNKED] * chunked)
    state["mask_token"] = torch.zeros(1, 32)
    seen = wi.anatomy(state, sizes={"h": 4})
    assert (seen.family, seen.depth, seen.outside["embed.mask"].size) == ("vit", 2, (32,))
    same(state, old, vit(init_values=1e-5, num_classes=0))


@pytest.mark.parametrize("shape", [(1, 1, 16), (1, 16), (8, 8)])
def test_the_mask_token_of_a_decoder(shape):
    """A whole MAE file holds that of its decoder, which has a width of its own."""
    old, new = moved(vit(num_classes=0)), vit(num_classes=0)
    same({**old.state_dict(), "mask_token": torch.zeros(shape)}, old, new)


def test_dinov2_giant_files():
    changes = {"init_values": 1e-5, "num_classes": 0, "mlp_layer": timm.layers.SwiGLUPacked}
    changes["act_layer"] = nn.SiLU
    old = moved(vit(**changes))
    state = renamed(old, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    assert wi.anatomy(state, sizes={"h": 4}).blocks[0]["mlp.up.weight"].size == (64, 32)
    same(state, old, vit(**changes))


def test_dinov2_registers_and_the_class_tokens_own_position():
    old = moved(vit(init_values=1e-5, num_classes=0))
    state = dict(old.state_dict(), register_tokens=torch.randn(1, 4, 32))
    seen = wi.anatomy(state, sizes={"h": 4})
    assert (seen.traits.prefix_tokens, seen.traits.positions) == (5, ((4, 4), 1))


def dinov3(**changes):
    return vit("vit_small_patch16_dinov3", num_classes=0, **changes)


def test_dinov3_files():
    changes = {"qkv_bias": False}
    old = moved(dinov3(**changes))
    state = renamed(old, (r"reg_token", "storage_tokens"), (r"gamma_(\d)", r"ls\1.gamma"))
    state["rope_embed.periods"] = torch.ones(2)
    state["mask_token"] = torch.zeros(1, 32)
    state["blocks.0.attn.qkv.bias_mask"] = torch.zeros(96)
    assert "token.reg" in wi.anatomy(state, sizes={"h": 4}).outside
    same(state, old, dinov3(**changes))


def convnext(name="convnext_tiny", **changes):
    dims = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 5}
    return timm.create_model(name, **(dims | changes))


CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"mlp\.grn\.weight", "grn.gamma"),
    (r"mlp\.grn\.bias", "grn.beta"),
    (r"^head\.norm", "norm"),
    (r"^head\.fc", "head"),
)


@pytest.mark.parametrize("name", ["convnext_tiny", "convnextv2_tiny"])
def test_convnext_files(name):
    old = moved(convnext(name))
    state = renamed(old, *CONVNEXT)
    state = {n: v.view(1, 1, 1, -1) if "grn" in n else v for n, v in state.items()}
    same(state, old, convnext(name))


def test_features_of_a_convnext():
    old = moved(convnext())
    new = convnext(features_only=True)
    wi.project_from(old, new)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(new(x)[-1], old.stages(old.stem(x)), rtol=1e-5, atol=1e-5)
    back = convnext()
    wi.project_from(new, back)
    assert torch.equal(
        back.stages[2].blocks[1].mlp.fc1.weight, old.stages[2].blocks[1].mlp.fc1.weight
    )


def test_a_convnext_whose_first_stage_downsamples():
    old, new = moved(convnext(patch_size=2)), convnext(patch_size=2)
    assert wi.anatomy(old).outside["down.0.weight"].axes == (("d0",), ("d0",), ("y",), ("x",))
    wi.project_from(old, new)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(new.eval()(x), old(x))


OPEN_CLIP = (
    (r"^cls_token", "class_embedding"),
    (r"^pos_embed", "positional_embedding"),
    (r"^patch_embed\.proj", "conv1"),
    (r"^norm_pre", "ln_pre"),
    (r"^norm\.", "ln_post."),
    (r"\.norm([12])", r".ln_\1"),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"^blocks", "transformer.resblocks"),
    (r"^head\.weight", "proj"),
)


@pytest.mark.parametrize("prefix", ["", "visual.", "model.visual."])
def test_open_clip_towers(prefix):
    old = moved(vit("vit_base_patch16_clip_224"))
    old.head.bias.data.zero_()
    state = renamed(old, *OPEN_CLIP)
    del state["head.bias"]
    state["proj"] = state["proj"].T.contiguous()
    state["class_embedding"] = state["class_embedding"].flatten()
    state["positional_embedding"] = state["positional_embedding"][0]
    new = vit("vit_base_patch16_clip_224")
    wi.project_from(wi.Ancestor.open({prefix + n: x for n, x in state.items()}, heads=4), new)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = old.forward_head(old.forward_features(x), pre_logits=True)
        ours = new.eval().forward_head(new.forward_features(x), pre_logits=True)
    torch.testing.assert_close(ours, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(new.head.weight, old.head.weight)


def test_a_whole_clip_names_its_tower():
    tower = renamed(vit("vit_base_patch16_clip_224"), *OPEN_CLIP)
    state = {f"visual.{n}": x for n, x in tower.items() if n != "head.bias"}
    text = {n: torch.zeros(4, 4) for n in ("token_embedding.weight", "text_projection")}
    text["transformer.resblocks.0.mlp.c_fc.weight"] = torch.zeros(16, 4)
    with pytest.raises(wi.AnatomyError, match=r"3 of .*'visual' is a open_clip vit"):
        wi.anatomy(state | text, sizes={"h": 4})


def nano_gpt(width=32, heads=4, depth=2):
    """Karpathy's: GPT-2's names over linear layers."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.n_head = heads

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gelu = nn.GELU()

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.attn = nn.LayerNorm(width), Attention()
            self.ln_2, self.mlp = nn.LayerNorm(width), MLP()

    model = nn.Module()
    model.transformer = nn.ModuleDict(
        {
            "wte": nn.Embedding(50, width),
            "wpe": nn.Embedding(16, width),
            "h": nn.ModuleList(Block() for _ in range(depth)),
            "ln_f": nn.LayerNorm(width),
        }
    )
    model.lm_head = nn.Linear(width, 50, bias=False)
    model.lm_head.weight = model.transformer.wte.weight
    return model


# Hugging Face's.

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
       "patch_size": 8, "attn_implementation": "eager"}  # fmt: skip
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def hugging_face(name, **sizes):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name, None) or pytest.skip(f"this transformers has no {name}")
    return moved(kind(kind.config_class(**sizes)))


def hidden(model, x=X):
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            return model.forward_features(x)
        return model(x).last_hidden_state


def agree(old, new, run=hidden):
    """Project there, and then back into a copy that was moved away."""
    wi.project_from(old, new)
    expected = run(old)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(run(new.eval()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_of_transformers(registers, gated):
    name = "Dinov2WithRegistersModel" if registers else "Dinov2Model"
    sizes = VIT | {"use_swiglu_ffn": gated}
    if registers:
        sizes["num_register_tokens"] = registers
    old = hugging_face(name, **sizes)
    seen = wi.anatomy(old)
    assert (seen.traits.grid, seen.traits.pos_prefix) == ((4, 4), 1)
    assert seen.traits.act == ("silu" if gated else "gelu")
    agree(old, hugging_face(name, **sizes))
    changes = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} if gated else {}
    if gated:
        changes["mlp_ratio"] = seen.sizes["m"] * 2 / 32
    if not registers:
        agree(old, vit(init_values=1.0, num_classes=0, **changes))


def test_dinov2_classifier_reads_two_features():
    old = hugging_face("Dinov2ForImageClassification", **VIT)
    seen = wi.anatomy(old)
    assert seen.outside["head_cls.weight"].size == seen.outside["head_avg.weight"].size == (2, 32)
    agree(old, hugging_face("Dinov2ForImageClassification", **VIT), lambda m: m(X).logits)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov3_of_transformers(gated, registers):
    sizes = VIT | {
        "intermediate_size": 64,
        "use_gated_mlp": gated,
        "num_register_tokens": registers,
    }
    if gated:
        sizes["hidden_act"] = "silu"
    old = hugging_face("DINOv3ViTModel", **sizes)
    assert ("mlp.up.weight" in wi.anatomy(old).blocks[0]) is gated
    agree(old, hugging_face("DINOv3ViTModel", **sizes))


def test_dinov3_of_transformers_into_timm():
    sizes = VIT | {"intermediate_size": 128, "num_register_tokens": 4, "layer_norm_eps": 1e-5,
                   "query_bias": False, "value_bias": False}  # fmt: skip
    agree(hugging_face("DINOv3ViTModel", **sizes), dinov3(qkv_bias=False, global_pool="token"))


def test_clip_of_transformers():
    sizes = VIT | {"intermediate_size": 128, "projection_dim": 5}
    old = hugging_face("CLIPVisionModelWithProjection", **sizes)
    agree(old, hugging_face("CLIPVisionModelWithProjection", **sizes), lambda m: m(X).image_embeds)
    new = vit("vit_base_patch16_clip_quickgelu_224")
    wi.project_from(old, new)
    with torch.no_grad():
        new.head.bias.zero_()
        torch.testing.assert_close(new.eval()(X), old(X).image_embeds, rtol=1e-4, atol=1e-4)


def test_siglip_of_transformers():
    sizes = VIT | {"intermediate_size": 128}
    old = hugging_face("SiglipVisionModel", **sizes)
    new = vit("vit_base_patch16_siglip_224", num_classes=0, act_layer="gelu_tanh")
    wi.project_from(old, new)
    with torch.no_grad():
        ours, theirs = new.eval()(X), old(X).pooler_output
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    back = hugging_face("SiglipVisionModel", **sizes)
    wi.project_from(new, back)
    with torch.no_grad():
        torch.testing.assert_close(back(X).pooler_output, theirs, rtol=1e-3, atol=1e-3)


def test_ast_of_transformers():
    sizes = {k: v for k, v in VIT.items() if k != "image_size"} | {
        "intermediate_size": 64, "max_length": 64, "num_mel_bins": 32, "frequency_stride": 8,
        "time_stride": 6}  # fmt: skip
    old = hugging_face("ASTForAudioClassification", **sizes)
    seen = wi.anatomy(old)
    assert seen.traits.positions == ((4, 10), 2)
    x = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))
    agree(old, hugging_face("ASTForAudioClassification", **sizes), lambda m: m(x).logits)


def test_masked_image_modelling():
    sizes = VIT | {"intermediate_size": 64, "encoder_stride": 8}
    old = hugging_face("ViTForMaskedImageModeling", **sizes)
    mask = torch.arange(16) % 2 == 0
    run = lambda m: m(X, bool_masked_pos=mask[None].expand(3, -1)).reconstruction  # noqa: E731
    agree(old, hugging_face("ViTForMaskedImageModeling", **sizes), run)
    agree(
        old, hugging_face("ViTModel", **sizes), lambda m: getattr(m, "vit", m)(X).last_hidden_state
    )


IDS = torch.arange(24).view(3, 8) % 50


@pytest.mark.parametrize("name", ["DistilBertForMaskedLM", "DistilBertForSequenceClassification"])
def test_distilbert(name):
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 50}
    old = hugging_face(name, **sizes)
    assert (wi.anatomy(old).family, wi.anatomy(old).traits.form) == ("bert", "post_norm")
    agree(old, hugging_face(name, **sizes), lambda m: m(IDS).logits)


def test_a_sentence_encoder_in_its_wrapper():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 64, "vocab_size": 50}  # fmt: skip

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.auto_model = hugging_face("BertModel", **sizes)

    old, new = nn.Sequential(Transformer(), nn.Identity()), hugging_face("BertModel", **sizes)
    agree(
        old, new, lambda m: (m[0].auto_model if hasattr(m, "__len__") else m)(IDS).last_hidden_state
    )
    assert wi.anatomy(old).prefix == "0.auto_model."


def test_decision_transformer():
    sizes = {"state_dim": 5, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4,
             "max_ep_len": 20}  # fmt: skip
    old = hugging_face("DecisionTransformerModel", **sizes)
    seen = wi.anatomy(old)
    assert (seen.depth, seen.sizes["h"], seen.traits.act) == (2, 4, "relu")
    generator = torch.Generator().manual_seed(1)
    given = {
        "states": torch.randn(2, 4, 5, generator=generator),
        "actions": torch.randn(2, 4, 3, generator=generator),
        "returns_to_go": torch.randn(2, 4, 1, generator=generator),
        "timesteps": torch.arange(4).expand(2, -1),
        "attention_mask": torch.ones(2, 4),
    }
    run = lambda m: m(**given).action_preds  # noqa: E731
    agree(old, hugging_face("DecisionTransformerModel", **sizes), run)
    agree(old, hugging_face("DecisionTransformerModel", **(sizes | {"n_layer": 3})), run)


@pytest.mark.parametrize("version", ["", "V2"])
def test_convnext_of_transformers(version):
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_labels": 5}
    old = hugging_face(f"ConvNext{version}ForImageClassification", **sizes)
    new = convnext(f"convnext{version.lower()}_tiny")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wi.project_from(old, new)
    with torch.no_grad():
        torch.testing.assert_close(new.eval()(x), old(x).logits, rtol=1e-3, atol=1e-3)
    back = hugging_face(f"ConvNext{version}ForImageClassification", **sizes)
    agree(old, back, lambda m: m(x).logits)


@pytest.mark.parametrize("bare", [False, True])
def test_nano_gpt(bare):
    old = moved(nano_gpt())
    source = wi.Ancestor.open(old.state_dict(), heads=4) if bare else old
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 16}
    new = hugging_face("GPT2LMHeadModel", **sizes, activation_function="gelu")
    wi.project_from(source, new)
    for i in range(2):
        ours, theirs = new.transformer.h[i], old.transformer.h[i]
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            weight = ours.get_submodule(layer).weight
            assert torch.equal(weight, theirs.get_submodule(layer).weight.T)


GROWN = {
    "Dinov2ForImageClassification": (VIT, lambda m: m(X.double()).logits),
    "DINOv3ViTModel": (
        VIT | {"intermediate_size": 64, "num_register_tokens": 4},
        lambda m: m(X.double()).last_hidden_state[..., :32],
    ),
    "CLIPVisionModelWithProjection": (
        VIT | {"intermediate_size": 64},
        lambda m: m(X.double()).image_embeds,
    ),
    "ViTForMaskedImageModeling": (
        VIT | {"intermediate_size": 64, "encoder_stride": 8},
        lambda m: m(X.double(), bool_masked_pos=torch.eye(3, 16).bool()).reconstruction,
    ),
}


@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize("by", [2, 1.5])
def test_growth_that_is_called_lossless_is(name, by):
    sizes, run = GROWN[name]
    wide = {key: int(sizes[key] * by) for key in sizes if key.endswith("_size") or "heads" in key}
    wide |= {"image_size": 32, "patch_size": 8, "num_hidden_layers": 3}
    old = hugging_face(name, **sizes).double()
    new = hugging_face(name, **(sizes | wide)).double()
    plan = wi.plan_projection(old, new, method="lemon")
    plan.commit()
    *_, note = plan.report().notes
    if "norm_pre" in note:  # CLIP's norm before the blocks at other than whole multiples
        assert (name[:4], by) == ("CLIP", 1.5)
        assert "not lossless" in note
        return
    assert note.startswith("LEMON is lossless here")
    for module in new.modules():
        if isinstance(module, nn.LayerNorm) and "eps" in note:
            module.eps /= by
    with torch.no_grad():
        torch.testing.assert_close(run(new), run(old), rtol=1e-9, atol=1e-9)
