import pytest
import torch
from helpers.inherit import Stub, small_vit
from test_methods_auto import bert
from torch import nn

import weightinit as wi
from weightinit.inherit.generated import generated_batches

SEED = 3


def test_images_are_as_the_ancestor_takes_them():
    ancestor = wi.Ancestor.open(small_vit())
    batches, text = generated_batches(ancestor, seed=SEED)
    images = torch.cat(batches)
    assert images.shape == (192, 3, 16, 16)
    assert "192 generated images of 16 x 16" in text
    assert torch.isfinite(ancestor.module()(batches[0])).all()


def test_images_are_drawn_from_the_seed_alone():
    ancestor = wi.Ancestor.open(small_vit())
    state = torch.get_rng_state()
    one, two, other = (
        torch.cat(generated_batches(ancestor, seed=seed)[0]) for seed in (SEED, SEED, SEED + 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def span(ancestor):
    batches, text = generated_batches(wi.Ancestor.open(ancestor), seed=SEED)
    images = torch.cat(batches)
    return images.amin((0, 2, 3)), images.amax((0, 2, 3)), text


def test_the_normalisation_is_that_of_the_timm_config_and_the_report_says_so():
    ancestor = small_vit(pretrained_cfg_overlay={"mean": (0.2, 0.5, 0.5), "std": (0.5, 0.25, 0.5)})
    low, high, text = span(ancestor)
    torch.testing.assert_close(low, torch.tensor([-0.4, -2.0, -1.0]))
    torch.testing.assert_close(high, torch.tensor([1.6, 2.0, 1.0]))
    assert "the mean and deviation of its timm config" in text


def test_an_unknown_normalisation_is_imagenets_and_said():
    ancestor = small_vit()
    ancestor.pretrained_cfg = ancestor.default_cfg = None
    low, _, text = span(ancestor)
    torch.testing.assert_close(low, -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    assert "ImageNet's mean and deviation, its own being unknown" in text


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_take_the_mean_of_the_three(channels):
    low, _, _ = span(small_vit(in_chans=channels))
    assert low.shape == (channels,)
    assert (low == low[0]).all()


def test_the_images_are_wide_where_the_ancestors_are():
    ancestor = wi.Ancestor.open(small_vit(img_size=(16, 40)))
    assert generated_batches(ancestor, seed=SEED)[0][0].shape[2:] == (16, 40)


@pytest.mark.parametrize("method", ["activation", "subcloning"])
def test_a_method_that_looks_at_data_takes_generated_ones_when_asked(method):
    ancestor, model = small_vit(24, 3, 3), small_vit(16, 2, 2)
    with pytest.raises(wi.ProjectionError, match="or calibration='generated' for images"):
        wi.plan_projection(ancestor, model, method=method)
    plan = wi.plan_projection(ancestor, model, method=method, calibration="generated")
    assert any("the ancestor is run on 192 generated images" in n for n in plan.report().notes)
    plan.validate()


def test_a_word_that_is_none_is_an_error():
    with pytest.raises(wi.ProjectionError, match="str: pass an iterable of batches, or"):
        wi.project_from(small_vit(), small_vit(depth=1), calibration="photos")


def test_a_language_model_is_given_tokens():
    plan = wi.plan_projection(bert(2), bert(1), calibration="generated")
    assert any("tokens drawn evenly from its vocabulary" in note for note in plan.report().notes)
    plan.validate()


def test_generated_data_are_refused_where_the_ancestor_takes_neither_images_nor_tokens():
    old, new = (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 3, 48), n, enable_nested_tensor=False)
        for n in (2, 1)
    )
    with pytest.raises(wi.ProjectionError, match=r"no data for .*neither images .* nor tokens"):
        wi.project_from(old, new, calibration="generated")


def test_generated_data_are_refused_where_the_ancestor_cannot_be_run():
    ancestor = wi.Ancestor.open(small_vit().state_dict(), heads=3)
    with pytest.raises(wi.ProjectionError, match=r"no data for .*cannot be run.*pass the module"):
        wi.project_from(ancestor, small_vit(depth=1), calibration="generated")


def test_timm_tells_no_more_than_it_knows():
    """A module of the user's own may have a config without a mean."""
    ancestor = small_vit()
    ancestor.pretrained_cfg = {"mean": None}
    assert "ImageNet's" in span(ancestor)[2]


@pytest.mark.parametrize("config", ["in1k", {"mean": 0.5, "std": 0.5}])
def test_a_config_of_another_kind_is_taken_for_none(config):
    ancestor = small_vit()
    ancestor.pretrained_cfg = config
    _, text = generated_batches(Stub(ancestor), seed=0)
    assert "ImageNet's mean" in text
