import pytest
import timm
import torch
from helpers.inherit import small_vit

from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.pairs import check_pair


def test_sizes_alone_are_no_obstacle():
    small = anatomy(small_vit(24, 3, 2, qkv_bias=False))
    assert check_pair(small, anatomy(small_vit(48, 6, 4, init_values=1e-5))) == []


def test_another_family_is_refused():
    with torch.device("meta"):
        convnext = timm.create_model("convnext_atto")
    with pytest.raises(ProjectionError, match="a convnext has no weights for a vit"):
        check_pair(anatomy(convnext), anatomy(small_vit()))


def test_other_parts_are_named():
    with pytest.raises(
        ProjectionError, match=r"the ancestor has attn\.k_norm\.weight, .* lacks; use"
    ):
        check_pair(anatomy(small_vit(qk_norm=True)), anatomy(small_vit()))
    with pytest.raises(ProjectionError, match=r"parts: the target has mlp\.up\.weight, which"):
        glu = small_vit(mlp_layer=timm.layers.SwiGLU)
        check_pair(anatomy(small_vit()), anatomy(glu))


def test_scales_and_biases_may_differ():
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    old, new = (timm.models.ConvNeXt(**sizes, ls_init_value=x) for x in (None, 1e-6))
    assert check_pair(anatomy(old), anatomy(new)) == []


def test_heads_of_one_shape_differ():
    with pytest.raises(ProjectionError, match=r"6 heads of 4 .* 3 of 8.*heads of 4 \(3 .*=12\)"):
        check_pair(anatomy(small_vit(24, 6)), anatomy(small_vit(24, 3)))
    # Other widths are no trap: shapes differ, and methods see to heads.
    assert check_pair(anatomy(small_vit(24, 6)), anatomy(small_vit(16, 2))) == []


def test_what_a_state_dict_lacks_is_named():
    state, target = small_vit(depth=3).state_dict(), anatomy(small_vit())

    def without(*names):
        return anatomy({k: v for k, v in state.items() if k not in names}, sizes={"h": 3})

    assert check_pair(without(), target) == []
    # All biases of one kind, or the whole head: another model, and no damage.
    assert check_pair(without("head.weight", "head.bias"), target) == []
    biases = [f"blocks.{i}.attn.proj.bias" for i in range(3)]
    assert check_pair(without(*biases), target) == []
    for names, said in (
        (biases[:1], r"lacks attn\.proj\.bias of block 0, which"),
        (["norm.weight"], r"lacks norm\.weight, which"),
        (["norm.weight", "norm.bias"], r"lacks norm\.weight, which"),
        (["head.weight"], r"lacks head\.weight, which"),
    ):
        with pytest.raises(ProjectionError, match=said):
            check_pair(without(*names), target)


@pytest.mark.parametrize("keep", ["norm1", "blocks", "head.weight", "attn.k_norm"])
def test_what_a_target_keeps_is_not_asked_of_the_ancestor(keep):
    target = anatomy(small_vit(qk_norm=keep.startswith("attn")), keep=[keep, "attn"])
    state = small_vit(depth=3).state_dict()
    for gone in ("head.weight", "blocks.1.attn.proj.bias") if keep == "head.weight" else ():
        del state[gone]
    assert check_pair(anatomy(state, sizes={"h": 3}), target) == []


def test_another_function_and_a_large_ratio_are_said():
    relu = small_vit(act_layer=torch.nn.ReLU)
    assert "activation differs (gelu" in check_pair(anatomy(small_vit()), anatomy(relu))[0]
    deep = anatomy(small_vit(depth=10))
    assert check_pair(deep, anatomy(small_vit())) == [
        "depth differs by a factor of 5: an ancestor closer in size gives more"
    ]
