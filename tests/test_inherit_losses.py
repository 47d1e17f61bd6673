"""What is lost or drawn is said: in the report, and by a warning where the function rests on it."""

import re

import pytest
import timm
from helpers.inherit import randomise, small_vit
from test_inherit_outside import lm

import weightinit as wi


def notes(old, new, **options):
    return wi.plan_projection(old, new, **options).report().notes


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"reg_tokens": 4}, {}, r"no place for the ancestor's token\.reg: .* is lost"),
        ({"reg_tokens": 4}, {"reg_tokens": 1}, r"3 of 4 rows of token\.reg: .* is lost"),
        ({"pre_norm": True}, {}, r"norm_pre\.bias, norm_pre\.weight: "),
        ({}, {"pos_embed": "none"}, r"ancestor's pos: "),
        ({}, {"qkv_bias": False}, r"attn\.k\.bias, attn\.q\.bias, attn\.v\.bias: "),
        ({"pos_embed": "none"}, {}, r"^pos of the target .* drawn afresh"),
    ],
)
def test_a_loss_is_noted_and_warned_about(old, new, words):
    source, target = small_vit(**old), small_vit(**new)
    found = [note for note in notes(source, target) if re.search(words, note)]
    assert len(found) == 1
    with pytest.warns(UserWarning) as caught:
        wi.project_from(source, target)
    assert [str(w.message) for w in caught] == [f"project_from: {found[0]}"]


def test_a_norm_in_front_of_the_blocks_that_is_drawn_is_warned_about():
    found = notes(small_vit(), small_vit(pre_norm=True))
    assert any(re.search(r"^norm_pre\.weight of the target .* drawn afresh", x) for x in found)


def test_a_grid_that_is_taken_for_a_square_is_noted():
    old = wi.Ancestor.open(small_vit().state_dict(), heads=3)
    said = r"nothing tells the grid .* taken for \((\d+), \1\): .*grid="
    sizes = {"img_size": 24, "patch_size": 4}
    assert any(re.search(said, note) for note in notes(old, small_vit(**sizes)))
    for source, target in ((old, small_vit()), (small_vit(), small_vit(**sizes))):
        assert not any("taken for" in note for note in notes(source, target))


def test_a_head_that_has_no_place_is_noted_alone():
    source, target = small_vit(), small_vit(num_classes=0)
    wi.project_from(source, target)  # no warning
    assert "no place for the ancestor's head.bias, head.weight" in "".join(notes(source, target))


def test_a_head_that_is_taken_over_is_noted():
    source, target = small_vit(), small_vit()
    assert "the head is the ancestor's, as it has 5 classes too" in "".join(notes(source, target))
    for note in (
        *notes(source, target, keep=["head"]),
        *notes(source, small_vit(num_classes=6)),
        *notes(lm(tied=False), lm(tied=False)),  # words are no classes
    ):
        assert "the head is" not in note


def test_a_stem_or_an_embedding_of_another_kind_is_warned_about():
    plain = small_vit()
    hybrid = randomise(
        timm.models.VisionTransformer(
            img_size=32, embed_dim=24, num_heads=3, depth=2, num_classes=5,
            embed_layer=lambda **k: timm.models.vision_transformer_hybrid.HybridEmbed(
                timm.models.vision_transformer_hybrid.ConvStem(
                    depth=2, stride=(4, 2), kernel_size=(3, 3), channels=(6, 24)
                ),
                img_size=32, embed_dim=24, proj=False,
            ),
        )
    )  # fmt: skip
    found = notes(plain, hybrid)
    assert any("stem.0.conv.weight" in note and "drawn afresh" in note for note in found)
    assert any("ancestor's patch.bias, patch.weight: " in note for note in found)


def test_nothing_is_said_where_nothing_is_lost():
    for source, target in (
        (small_vit(), small_vit(32, 4, 3)),
        (small_vit(qkv_bias=False), small_vit(init_values=0.1)),
        (lm(), lm(width=48)),
    ):
        text = "\n".join(notes(source, target))
        assert "no place" not in text and "afresh" not in text


def test_words_that_are_left_out_are_noted():
    found = notes(lm(words=31, positions=16), lm(words=20, positions=12))
    assert "11 of 31 rows of embed.token.weight, 4 of 16 rows of pos" in "".join(found)
    wi.project_from(lm(words=31), lm(words=20))


def test_where_the_positions_of_a_text_begin_is_assumed_aloud():
    bert, more = lm(), lm()
    roberta, target = (lm("Roberta", "ForMaskedLM", positions=18) for _ in "ab")
    with pytest.warns(UserWarning, match="of the ancestor begin, .* begin in row 2 as the other's"):
        wi.project_from(wi.Ancestor.open(roberta.state_dict(), heads=3), target)
    assert "begin in" not in "".join(notes(wi.Ancestor.open(bert.state_dict(), heads=3), more))
