import pytest
import timm
import torch
from helpers.timing import quickest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit import AnatomyError
from weightinit.anatomy import Rule, anatomy


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def on_meta(name, **changes):
    with torch.device("meta"):
        return timm.create_model(name, **changes)


KWARGS = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 4),
        "num_heads": st.integers(1, 4),
        "mlp_ratio": st.sampled_from([0.5, 1.0, 2.75, 4.0]),
        "qkv_bias": st.booleans(),
        "init_values": st.sampled_from([None, 1e-5]),
        "reg_tokens": st.integers(0, 4),
        "class_token": st.booleans(),
        "qk_norm": st.booleans(),
        "no_embed_class": st.booleans(),
        "pos_embed": st.sampled_from(["learn", "none"]),
        "num_classes": st.integers(0, 3),
    }
)


@given(KWARGS, st.integers(1, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_timm_vit_is_partitioned_into_pieces(kwargs, head_dim, swiglu):
    width = kwargs["num_heads"] * head_dim
    pool = "token" if kwargs["class_token"] else "avg"
    if swiglu:
        kwargs["mlp_layer"] = timm.layers.SwiGLUPacked
        kwargs["mlp_ratio"] = 2.0
    model = tiny(embed_dim=width, global_pool=pool, **kwargs)
    seen = anatomy(model)
    assert seen.depth == len(seen.blocks) == kwargs["depth"]
    assert (seen.sizes["d"], seen.sizes["h"], seen.sizes["k"]) == (
        width,
        kwargs["num_heads"],
        head_dim,
    )
    assert seen.traits.prefix_tokens == kwargs["class_token"] + kwargs["reg_tokens"]
    assert [spec.name for spec in seen.specs] == [name for name, _ in model.named_parameters()]
    pieces = [*seen.outside.values(), *(p for block in seen.blocks for p in block.values())]
    owned = {}
    for piece in pieces:
        owned.setdefault(piece.spec.name, {})[piece.role] = piece
    assert owned.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        spec = seen.spec(name)
        # Every element is in one view and in no other.
        counts = torch.zeros(parameter.shape)
        views = seen.split(spec, counts)
        assert views.keys() == owned[name].keys()
        for role, view in views.items():
            assert tuple(view.shape) == owned[name][role].size
            view += 1
        assert torch.equal(counts, torch.ones_like(counts))
        assert torch.equal(seen.merge(spec, seen.split(spec, parameter)), parameter)


def test_meta_models_are_as_good_as_real_ones():
    with torch.device("meta"):
        model = tiny()
    assert anatomy(model).specs == anatomy(tiny()).specs


def test_tied_weights_are_listed_once():
    model = tiny(num_classes=12)
    model.head.weight = model.blocks[0].attn.proj.weight
    for source in (model, model.state_dict()):
        seen = anatomy(source, sizes={"h": 3})
        assert seen.spec("blocks.0.attn.proj.weight").tied == ("head.weight",)
        assert seen.spec("head.weight").role == "attn.proj.weight"
        assert "head.weight" not in seen.outside


def test_buffers_of_a_state_dict_are_no_parameters():
    state = timm.create_model("vit_tiny_r_s16_p8_224").state_dict()
    state["blocks.0.attn.relative_position_index"] = torch.zeros(3, dtype=torch.int64)
    assert len(anatomy(state, sizes={"h": 3}).specs) == len(state) - 1


def test_roles_and_blocks_must_be_whole():
    state = tiny().state_dict()
    rules = [Rule(r"norm\.weight", "norm.bias", "d")]
    with pytest.raises(AnatomyError, match=r"both norm\.bias"):
        anatomy(state, rules=rules, sizes={"h": 3})
    partial = {name: x for name, x in state.items() if not name.startswith("blocks.0.")}
    with pytest.raises(AnatomyError, match=r"blocks \[0\]"):
        anatomy(partial, sizes={"h": 3})
    far = {"blocks.1000000000.norm1.weight": torch.ones(4)}
    with pytest.raises(AnatomyError, match=r"1 of 1 .*blocks\.1000000000\.norm1\.weight"):
        anatomy(far, unexplained="outside")


def test_the_public_name_is_a_function_even_after_the_import_of_its_package():
    import weightinit.anatomy

    assert wi.anatomy(tiny()).depth == 2
    assert weightinit.anatomy(tiny()).depth == 2


def test_it_costs_milliseconds():
    """About 1 ms, where timm takes 75 to build the model on meta."""
    model = on_meta("vit_base_patch16_224")
    assert quickest(lambda: anatomy(model)) < quickest(lambda: on_meta("vit_base_patch16_224")) / 5
