import pytest
import torch
from helpers.inherit import Stub, fill, logits, small_vit

from weightinit.errors import ProjectionError
from weightinit.methods.stacking import Stacking


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        ("stack", [0, 1, 2, 0, 1]),
        ("stack_top", [0, 1, 2, 1, 2]),
        ("interlace", [0, 0, 1, 1, 2]),
        ("solar", [0, 1, 2, 1, 2]),
        (lambda old, new: [((0, 1.0),)] * new, [0] * 5),
    ],
)
def test_every_block_is_the_copy_that_the_rule_names(depth, blocks):
    ancestor, model = small_vit(depth=3), small_vit(depth=5)
    report = fill(model, ancestor, Stacking(depth))
    assert report.counts["fresh"] == 0
    for block, index in zip(model.blocks, blocks, strict=True):
        for name, value in ancestor.blocks[index].named_parameters():
            assert torch.equal(block.get_parameter(name), value), name
    assert torch.equal(model.pos_embed, ancestor.pos_embed)


def test_the_same_depth_is_the_same_function():
    ancestor, model = small_vit(depth=3), small_vit(depth=3, num_classes=5)
    torch.nn.init.normal_(model.blocks[1].mlp.fc1.weight)
    fill(model, ancestor, Stacking("solar"))
    assert torch.equal(logits(model), logits(ancestor))


def test_other_images_and_classes_are_no_obstacle():
    model = small_vit(depth=3, img_size=32, num_classes=7)
    report = fill(model, small_vit(depth=2), Stacking())
    assert [row.name for row in report.rows if row.action == "fresh"] == [
        "head.weight", "head.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48, "heads": 6}, "h 3 -> 6, d 24 -> 48"),
        ({"heads": 6}, "h 3 -> 6, k 8 -> 4"),
        ({"mlp_ratio": 2.0}, "m 96 -> 48"),
    ],
)
def test_another_width_is_refused_with_what_does_both(changes, said):
    with pytest.raises(ProjectionError, match=f"{said}.*'bert2bert' or 'ligo'"):
        fill(small_vit(depth=3, **changes), small_vit(depth=2), Stacking())


def test_heads_that_a_state_dict_does_not_tell_are_not_compared():
    ancestor = small_vit(depth=2)
    source = Stub(ancestor)
    source.anatomy = type(source.anatomy)(
        **{f: getattr(source.anatomy, f) for f in ("specs", "depth", "family", "traits")},
        sizes={k: v for k, v in source.anatomy.sizes.items() if k not in "hk"},
    )
    fill(small_vit(depth=3), source, Stacking())


def test_a_shallower_target_is_refused():
    with pytest.raises(ProjectionError, match="2 of 3 blocks"):
        fill(small_vit(depth=2), small_vit(depth=3), Stacking())
