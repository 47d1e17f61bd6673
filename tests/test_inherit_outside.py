import torch
from helpers.models import vit

from weightinit.anatomy import anatomy
from weightinit.inherit.outside import carry, collect


def test_collect_copies_every_tensor_outside_the_blocks():
    model = vit(class_token=True, reg_tokens=2, global_pool="token")
    seen = anatomy(model)
    found = collect(seen, dict(model.named_parameters()))
    assert set(found) == {
        "patch.weight", "patch.bias", "pos", "token.cls", "token.reg", "norm.weight", "norm.bias",
        "head.weight", "head.bias",
    }  # fmt: skip
    found["pos"].zero_()
    assert bool(model.pos_embed.any())


def filled(source, target, role):
    seen = anatomy(target)
    outside = collect(anatomy(source), dict(source.named_parameters()))
    piece = seen.outside[role]
    how = carry(piece, seen, outside, anatomy(source).traits)
    if how is None:
        return None
    out = torch.full(piece.size, float("nan"))
    with torch.no_grad():
        how.fill(out)
    return out


def test_final_norm_follows_its_place():
    source, target = vit(), vit(fc_norm=True)
    with torch.no_grad():
        source.norm.weight.fill_(3)
    assert torch.equal(filled(source, target, "fc_norm.weight"), source.norm.weight)


def test_positions_are_resampled_by_timm_and_tokens_added():
    from timm.layers import resample_abs_pos_embed

    source, target = vit(), vit(img_size=12, class_token=True, global_pool="token")
    expected = resample_abs_pos_embed(source.pos_embed, [6, 6], [4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(filled(source, target, "pos")[1:], expected[0])


def test_patches_are_resampled_by_timm_and_channels_keep_their_sum():
    from timm.layers import resample_patch_embed

    source, target = vit(), vit(patch_size=4, in_chans=3)
    expected = resample_patch_embed(source.patch_embed.proj.weight, [4, 4])
    torch.testing.assert_close(filled(source, target, "patch.weight").sum(1), expected[:, 0])


def test_a_head_of_other_classes_and_a_missing_token_are_not_carried():
    assert filled(vit(), vit(num_classes=6), "head.weight") is None
    assert filled(vit(), vit(class_token=True, global_pool="token"), "token.cls") is None
