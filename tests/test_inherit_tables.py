import warnings

import pytest
import timm
import torch
from helpers.inherit import logits, randomise
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

import weightinit as wi
from weightinit.anatomy import Labels, Piece, Traits, anatomy
from weightinit.errors import ProjectionError
from weightinit.inherit.outside import resized

KINDS = {
    "own": {"use_rel_pos_bias": True},
    "shared": {"use_shared_rel_pos_bias": True},
}


def beit(img_size=16, patch_size=4, width=24, heads=3, depth=2, **kwargs):
    sizes = {"img_size": img_size, "patch_size": patch_size, "embed_dim": width}
    model = timm.models.beit.Beit(
        **sizes, num_heads=heads, depth=depth, num_classes=5, use_abs_pos_emb=False, **kwargs
    )
    return randomise(model, width + depth)


def piece(role, labels):
    """A canonical piece [9, 2] of a parameter that nobody asks about."""
    return Piece(role, (9, 2), None, tuple(map(Labels, labels)))


def table_of(model):
    return next(p for name, p in model.named_parameters() if name.endswith("bias_table"))


def by_timm(table, side):
    shape = (2 * side - 1) ** 2 + 3, table.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about how timm calls it
        return resize_rel_pos_bias_table(table.detach(), (side, side), shape)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_resampled_as_timm_does(kind):
    ancestor, model = beit(**KINDS[kind]), beit(24, **KINDS[kind])
    wi.project_from(ancestor, model)
    wanted = by_timm(table_of(ancestor), 6)
    torch.testing.assert_close(table_of(model).detach(), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method", ["bot", "fine", "ligo", "lemon", "net2net", "stacking", "bert2bert"]
)
def test_methods_that_grow_resample(kind, method):
    ancestor, model = beit(**KINDS[kind]), beit(24, depth=3, **KINDS[kind])
    wi.project_from(ancestor, model, method=method)
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_windows_change_at_once(kind):
    ancestor, model = beit(24, **KINDS[kind]), beit(16, 4, 16, 2, 1, **KINDS[kind])
    counts = wi.plan_projection(ancestor, model).report().counts
    assert counts["fresh"] == 0
    wi.project_from(ancestor, model)
    wanted = by_timm(table_of(ancestor), 4)
    torch.testing.assert_close(table_of(model).detach(), wanted[:, [0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_auto_does_not_fit_what_needs_another_window(kind):
    ancestor, model = beit(**KINDS[kind]), beit(24, 4, 16, 2, 1, **KINDS[kind])
    images = [torch.randn(8, 3, 16, 16)] * 2
    plan = wi.plan_projection(ancestor, model, calibration=images)
    assert "WeightSelection" in plan.report().notes[-1]
    plan.commit()


def test_a_window_on_its_side():
    ancestor, model = beit((24, 16), **KINDS["own"]), beit((16, 24), **KINDS["own"])
    wi.project_from(ancestor, model)
    assert not torch.equal(table_of(ancestor), table_of(model))
    again = beit((24, 16), **KINDS["own"])
    wi.project_from(ancestor, again)
    assert torch.equal(table_of(ancestor), table_of(again))


def test_the_window_of_a_state_dict_is_square_or_unknown():
    square, wide = beit(**KINDS["own"]), beit((16, 24), **KINDS["own"])
    model, like = beit(24, **KINDS["own"]), beit(24, **KINDS["own"])
    wi.project_from(wi.Ancestor.open(square.state_dict(), heads=3), model)
    wi.project_from(square, like)
    assert torch.equal(table_of(model), table_of(like))
    before = table_of(model).clone()
    with pytest.raises(ProjectionError, match=r"80 rows.*pass the ancestor as a module"):
        wi.project_from(wi.Ancestor.open(wide.state_dict(), heads=3), model)
    assert torch.equal(table_of(model), before)
    wi.project_from(wi.Ancestor.open(wide.state_dict(), heads=3, grid=(4, 6)), model)
    wi.project_from(wide, like)
    assert torch.equal(table_of(model), table_of(like))


def test_decomposed_tables_are_linear():
    value = torch.arange(5.0)[:, None].expand(5, 2)
    found = resized(value, piece("attn.rel_pos_h", "uk"), old=Traits(), new=Traits())
    assert found.shape == (9, 2) and bool((found.diff(dim=0) >= 0).all())
    assert resized(value, piece("mlp.fc1.weight", "md"), old=Traits(), new=Traits()) is value


def test_sam():
    def sam(size, window):
        return randomise(
            timm.models.vision_transformer_sam.VisionTransformerSAM(
                img_size=size, patch_size=8, embed_dim=24, num_heads=3, depth=2, num_classes=5,
                use_rel_pos=True, window_size=window, global_attn_indexes=(1,),
            )
        )  # fmt: skip

    ancestor, model = sam(32, 2), sam(64, 3)
    wi.project_from(ancestor, model)
    assert torch.isfinite(logits(model)).all()


def test_tables_of_buckets_are_refused_by_name():
    def rpe(**kwargs):
        return randomise(
            timm.models.VisionTransformer(
                img_size=16, patch_size=8, embed_dim=24, num_heads=3, depth=1, num_classes=5
            )
        )

    ancestor, model = rpe(), rpe()
    rules = [wi.Rule(r"blocks\.(?P<block>\d+)\.attn\.buckets", "attn.buckets", "u k")]
    for module, rows in ((ancestor, 7), (model, 9)):
        module.blocks[0].attn.buckets = torch.nn.Parameter(torch.randn(rows, 8))
    assert "attn.buckets" in anatomy(model, rules=rules).blocks[0]
    with pytest.raises(ProjectionError, match=r"attn\.buckets.*u 7 -> 9.*ancestor's size"):
        wi.project_from(ancestor, model, rules=rules)
    with pytest.raises(ProjectionError, match="u 7 -> 9"):
        wi.plan_projection(ancestor, model, rules=rules)
    torch.nn.Module.__delattr__(model.blocks[0].attn, "buckets")
    model.blocks[0].attn.buckets = torch.nn.Parameter(torch.zeros(7, 8))
    wi.project_from(ancestor, model, rules=rules)
    assert torch.equal(model.blocks[0].attn.buckets, ancestor.blocks[0].attn.buckets)
