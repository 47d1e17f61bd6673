import pytest
import timm
import torch
from inherit import small_vit

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.pairs import check_pair


def test_sizes_alone_are_no_obstacle():
    small = anatomy(small_vit(24, 3, 2, qkv_bias=False))
    assert check_pair(small, anatomy(small_vit(48, 6, 4, init_values=1e-5))) == []


def test_another_family_is_refused():
    with torch.device("meta"):
        convnext = timm.create_model("convnext_atto")
    with pytest.raises(ProjectionError, match="a convnext has no weights for a vit"):
        check_pair(anatomy(convnext), anatomy(small_vit()))


def test_other_parts_are_named():
    with pytest.raises(ProjectionError, match=r"attn\.k_norm\.weight, attn\.q_norm\.weight"):
        check_pair(anatomy(small_vit(qk_norm=True)), anatomy(small_vit()))
    with pytest.raises(ProjectionError, match=r"lacks its mlp\.up\.weight"):
        glu = small_vit(mlp_layer=timm.layers.SwiGLU)
        check_pair(anatomy(small_vit()), anatomy(glu))


def test_another_function_and_a_large_ratio_are_said():
    relu = small_vit(act_layer=torch.nn.ReLU)
    assert "activation differs (GELU" in check_pair(anatomy(small_vit()), anatomy(relu))[0]
    deep = anatomy(small_vit(depth=10))
    assert check_pair(deep, anatomy(small_vit())) == [
        "depth differs by a factor of 5: an ancestor closer in size gives more"
    ]
