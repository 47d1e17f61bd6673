import pytest
import timm
import torch
from helpers.models import make_bundle, vit

import weightinit as wi
from weightinit.errors import ProjectionError


def test_the_same_size_gives_the_auxiliary_model(bundle):
    """At ratio 1 and equal depth, the blocks are T and S composed, as trained."""
    model = wi.init_from_templates(vit(), bundle)
    for index, block in enumerate(model.blocks):
        t, s = (bundle.tensors[f"{n}.mlp.fc2.weight"].double() for n in ("templates", "scalers"))
        expected = sum(torch.kron(s[index, i], t[i]) for i in range(len(t)))
        torch.testing.assert_close(
            block.mlp.fc2.weight.detach().double(), expected, rtol=0, atol=1e-6
        )
        t, s = (bundle.tensors[f"{n}.attn.qkv.bias"].double() for n in ("templates", "scalers"))
        expected = sum(torch.kron(s[index, i], t[i]) for i in range(len(t)))
        torch.testing.assert_close(
            block.attn.qkv.bias.detach().double(), expected, rtol=0, atol=1e-6
        )


def test_fused_bias_of_a_wider_target_is_composed_per_part(bundle):
    """Blocks of q, k and v, not of [q k v]: the misalignment that Table C.2 invites."""
    model = wi.init_from_templates(vit(embed_dim=32, num_heads=4), bundle)
    small = wi.init_from_templates(vit(), bundle)
    wide = model.blocks[0].attn.qkv.bias.detach().chunk(3)
    for part, narrow in zip(wide, small.blocks[0].attn.qkv.bias.detach().chunk(3), strict=True):
        torch.testing.assert_close(part, narrow.repeat(2))


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_mlp_starts_as_the_composed_one(bundle, bias):
    """SwiGLU with biases: silu(gate) * 1; without: both halves from fc1."""
    from timm.layers import SwiGLU

    model = vit(mlp_layer=SwiGLU)
    if not bias:
        for block in model.blocks:
            block.mlp.fc1_g = torch.nn.Linear(16, 64, bias=False)
            block.mlp.fc1_x = torch.nn.Linear(16, 64, bias=False)
    wi.init_from_templates(model, bundle)
    plain = wi.init_from_templates(vit(), bundle)
    mlp, reference = model.blocks[1].mlp, plain.blocks[1].mlp
    torch.testing.assert_close(mlp.fc1_g.weight, reference.fc1.weight)
    if bias:
        assert bool((mlp.fc1_x.weight == 0).all()) and bool((mlp.fc1_x.bias == 1).all())
    else:
        torch.testing.assert_close(mlp.fc1_x.weight, reference.fc1.weight)


def test_class_attention_blocks_take_the_deepest_scalers(bundle):
    with torch.device("meta"):
        model = timm.create_model("cait_xxs24_224", depth=3, num_classes=5)
    wi.init_from_templates(model, bundle)
    last, token = model.blocks[-1], model.blocks_token_only[0]
    torch.testing.assert_close(token.mlp.fc2.weight, last.mlp.fc2.weight)
    torch.testing.assert_close(token.attn.q.weight, last.attn.qkv.weight[:192])


class Table(torch.nn.Module):
    """One lookup table of contextual relative positions."""

    def __init__(self, *shape):
        super().__init__()
        self.lookup_table_weight = torch.nn.Parameter(torch.zeros(shape))


def test_contextual_relative_positions_are_composed():
    def with_tables(depth):
        model = vit(depth=depth)
        for block in model.blocks:
            block.attn.rpe_q, block.attn.rpe_k = Table(1, 8, 10), Table(1, 8, 10)
            block.attn.rpe_v = Table(1, 10, 8)
        return model

    config = wi.TemplateConfig.wave(16, head_dim=8, buckets=10)
    trained = wi.constrain(with_tables(3), config)
    target = wi.init_from_templates(with_tables(2), trained.to_bundle())
    for name, weight in trained.weights().items():
        if "rpe" in name and "blocks.2" not in name:
            torch.testing.assert_close(target.get_parameter(name), weight)


def test_templates_of_another_family_are_refused():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(ProjectionError, match=r"bert.*templates of a vit"):
        wi.init_from_templates(BertModel(config), make_bundle())
