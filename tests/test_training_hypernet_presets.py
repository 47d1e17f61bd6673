import pytest
import timm
import torch

from weightinit.errors import WeightInitError
from weightinit.hypernet.network import GraphHyperNetwork
from weightinit.hypernet.samplers import get_sampler, micro, sample
from weightinit.training.data import load_data
from weightinit.training.hypernet_loss import MetaRecipe
from weightinit.training.hypernet_presets import HYPERNET_PRESETS, get_hypernet_preset
from weightinit.training.tasks import in_shape

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
    ],
)
def test_papers_hypernetworks_have_the_published_sizes(name, count):
    assert parameters(name) == count


def test_papers_recipes_are_the_published_ones():
    recipes = {name: HYPERNET_PRESETS[name] for name in HYPERNET_PRESETS if name[:5] == "paper"}
    epochs = {
        "paper-logah": 300, "paper-tal": 75, "paper-tal-plus": 75, "paper-tal-tasks": 100,
        "paper-pith": 200, "paper-pith-full": 200, "paper-pith-tasks": 100,
    }  # fmt: skip
    assert set(recipes) == set(epochs)
    for name, preset in recipes.items():
        recipe = preset.recipe
        assert (recipe.lr, recipe.warmup_lr, recipe.weight_decay) == (3e-4, 1e-5, 1e-2)
        assert (recipe.clip_grad, recipe.penalty, recipe.label_smoothing) == (5.0, 3e-5, 0.1)
        assert recipe.steps % epochs[name] == 0 and recipe.architectures == 1
        assert recipe.warmup_steps == 5 * recipe.steps // epochs[name]
        assert (preset.config.hid, preset.config.rank, preset.config.layers) == (128, 90, 5)
        assert (preset.config.heads, preset.config.max_ck) == (16, 32768)
    assert recipes["paper-tal"].recipe.guide == 0.2
    assert recipes["paper-tal"].recipe.guide_temperature == 3.0
    assert recipes["paper-tal"].recipe.batch_size == 512
    assert recipes["paper-tal-plus"].recipe.batch_size == 256
    assert recipes["paper-tal-plus"].sampler == "vits+-1k"
    second = recipes["paper-tal-tasks"]
    assert second.recipe.frozen and second.stage1 == "paper-tal" and not second.recipe.guide
    assert second.recipe.task_temperature == 2.0 and len(second.data) == 9
    assert second.config.task_dim == 768
    assert {p.config.max_shape[0] for n, p in recipes.items() if "pith" in n} == {4096}
    for preset in recipes.values():
        if preset.ancestor is not None:
            assert timm.get_pretrained_cfg(preset.ancestor.model) is not None


def test_every_kind_has_a_micro_preset_of_one_budget():
    names = {name.removeprefix("micro-") for name in HYPERNET_PRESETS if name[:5] == "micro"}
    assert {HYPERNET_PRESETS[f"micro-{name}"].context for name in TEXTS} == {64}
    names -= set(TEXTS)
    assert names == {
        "ghn3", "logah", "tal", "tal-tasks", "pith-shared", "pith-dual", "pith-full", "pith-rule",
    }  # fmt: skip
    recipes = {name: HYPERNET_PRESETS[f"micro-{name}"].recipe for name in names}
    assert {(r.steps, r.batch_size, r.architectures) for r in recipes.values()} == {(2000, 96, 1)}
    assert {n for n, r in recipes.items() if r.guide} == {"tal"}
    full = HYPERNET_PRESETS["micro-pith-full"].config
    assert full.separate and full.expansion == "both"
    assert HYPERNET_PRESETS["micro-pith-rule"].config.start == "rule"


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
    assert isinstance(preset.recipe, MetaRecipe)
    stage = HYPERNET_PRESETS.get(preset.stage1)
    if preset.stage1:
        assert stage is not None and stage.sampler == preset.sampler


def test_presets_of_texts_start_offline_and_keep_a_size_unseen():
    for name in TEXTS:
        preset = get_hypernet_preset(f"micro-{name}")
        assert set(preset.data) <= {"docstrings", "licences", "python"}
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
    data = in_shape(load_data("digits"), 32)
    model = preset.ancestor.build(data)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert dict(preset.ancestor.kwargs) == micro(64, 6)


def test_unknown_presets_are_refused():
    with pytest.raises(WeightInitError, match="preset 'nope' is unknown: use one of"):
        get_hypernet_preset("nope")
