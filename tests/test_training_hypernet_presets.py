import pytest
import torch

from weightinit.errors import WeightInitError
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import get_sampler, micro, sample
from weightinit.training.config import MetaConfig
from weightinit.training.data import load_data
from weightinit.training.hypernet_presets import HYPERNET_PRESETS, get_hypernet_preset

TEXTS = ("logah-gpt", "tal-text")


def parameters(name):
    with torch.device("meta"):
        network = GraphHyperNetwork(get_hypernet_preset(name).config)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("paper-logah", 21_412_794),
        ("paper-tal", 21_412_794),
        ("paper-pith", 50_528_133),
        ("paper-tal-tasks", 22_388_924),
        ("paper-pith-tasks", 51_512_453),
    ],
)
def test_papers_hypernetworks_have_the_published_sizes(name, count):
    assert parameters(name) == count


@pytest.mark.parametrize("name", [n for n in sorted(HYPERNET_PRESETS) if n.startswith("micro")])
def test_micro_presets_are_small_and_decode_widths_up_to_512(name):
    preset = get_hypernet_preset(name)
    assert parameters(name) < 5e6, "a bundle of a few MB"
    config = preset.config
    assert config.hid == 64 and config.layers == 3 and config.heads == 8
    if config.kind != "ghn3":
        assert config.rank == 16 and config.max_ck >= 8 * 512
        assert config.max_shape[0] >= 4 * 512
    for kwargs in preset.watch:
        assert kwargs.get("img_size", 0) == preset.image_size


@pytest.mark.parametrize("name", sorted(HYPERNET_PRESETS))
def test_samplers_and_data_go_together(name):
    preset = get_hypernet_preset(name)
    draw = torch.Generator().manual_seed(0)
    kwargs = sample(get_sampler(preset.sampler), draw, image_size=preset.image_size)
    assert kwargs.get("img_size", 0) == preset.image_size
    assert (preset.image_size == 0) == (preset.context > 0) == ("n_embd" in kwargs)
    assert isinstance(preset.training, MetaConfig)
    stage = HYPERNET_PRESETS.get(preset.stage1)
    if preset.stage1:
        assert stage is not None and stage.sampler == preset.sampler


def test_presets_of_texts_keep_a_size_unseen():
    for name in TEXTS:
        preset = get_hypernet_preset(f"micro-{name}")
        sampler = get_sampler(preset.sampler)
        drawn = {(width, depth) for depth, widths in sampler.widths.items() for width in widths}
        seen, unseen = ((kwargs["n_embd"], kwargs["n_layer"]) for kwargs in preset.watch)
        assert seen in drawn and not {unseen[0]} & {width for width, _ in drawn}
        assert unseen[1] not in sampler.widths
        assert preset.config.primitives == 18 and not preset.stage1
    ancestor = get_hypernet_preset("micro-tal-text").ancestor
    assert ancestor is not None
    assert ancestor.kwargs["n_embd"] == get_hypernet_preset("micro-tal-text").config.task_dim


def test_the_micro_ancestor_fits_the_data():
    preset = get_hypernet_preset("micro-tal")
    assert preset.ancestor is not None
    data = load_data("digits").in_shape(32)
    model = preset.ancestor.build(data)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert dict(preset.ancestor.kwargs) == micro(64, 6)


def test_unknown_presets_are_refused():
    with pytest.raises(WeightInitError, match="preset 'nope' is unknown: use one of"):
        get_hypernet_preset("nope")
