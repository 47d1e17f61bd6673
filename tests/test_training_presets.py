import pytest
import timm
import torch
from torch import nn

from weightinit.errors import WeightInitError
from weightinit.training.data import load_data
from weightinit.training.presets import PRESETS, get_preset
from weightinit.training.teacher import Network, ResizingModel


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_auxiliary_models_are_built_as_the_paper_says(name):
    preset = get_preset(name)
    depth = preset.auxiliary.kwargs["depth"]
    kwargs = preset.auxiliary_at(depth).kwargs
    with torch.device("meta"):
        model = timm.create_model(preset.auxiliary.model, **kwargs)
    assert model.embed_dim == preset.width and len(model.blocks) == depth
    assert isinstance(model.norm, nn.LayerNorm) and isinstance(model.fc_norm, nn.Identity)
    assert model.has_class_token == ("token" in preset.pools)
    ancestor = preset.ancestor
    if ancestor is None:
        assert preset.training.loss == "ce"
    elif ancestor.training:
        timm.create_model(ancestor.model, **ancestor.kwargs)
    else:
        assert timm.get_pretrained_cfg(ancestor.model)


@pytest.mark.parametrize("name", [n for n, preset in PRESETS.items() if preset.method == "weit"])
def test_weit_presets_name_sizes_inside_the_model(name):
    preset = get_preset(name)
    kwargs = preset.auxiliary.kwargs
    assert all(depth < kwargs["depth"] for depth in preset.depths)
    heads = [kwargs["num_heads"] * width for width in preset.widths]
    assert heads[0] == kwargs["num_heads"] and all(float(n).is_integer() for n in heads)


def test_a_network_is_drawn_from_its_seed():
    data = load_data("digits")
    network = Network("resnet10t", {"channels": (8, 8, 8, 8), "stem_width": 8}, image_size=16)
    state = torch.get_rng_state()
    a, b, c = (network.build(data, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert a["model.fc.weight"].shape[0] == 10 and a["model.conv1.0.weight"].shape[1] == 1


def test_images_are_resized_and_computed_as_the_network_wants():
    seen = {}

    class Probe(nn.Module):
        def forward(self, x):
            seen["shape"], seen["half"] = x.shape, torch.is_autocast_enabled("cpu")
            return x.mean((2, 3)).bfloat16()

    out = ResizingModel(Probe(), 12, bf16=True)(torch.ones(2, 3, 8, 8))
    assert seen == {"shape": (2, 3, 12, 12), "half": True} and out.dtype == torch.float32
    ResizingModel(Probe(), 0, bf16=False)(torch.ones(2, 3, 8, 8))
    assert seen == {"shape": (2, 3, 8, 8), "half": False}


def test_unknown_presets_are_refused():
    with pytest.raises(WeightInitError, match="preset 'nope' is unknown: use one of"):
        get_preset("nope")
