from statistics import mean

import pytest
import timm
import torch

from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import (
    SAMPLERS,
    Sampler,
    get_sampler,
    micro,
    sample,
)


def draws(name, count=1000, seed=1, **options):
    generator = torch.Generator().manual_seed(seed)
    return [sample(name, generator, **options) for _ in range(count)]


def published_widths(name, depth):
    """The generators' rules once more, written as they are: a range and a step by depth."""
    if name == "vits+-1k":
        return set(range(192, 768 + 1, 64))
    if name == "vits-1k":
        low, high = (128, 256) if depth > 5 else (256, 384) if depth > 3 else (384, 512)
        return set(range(low, high + 1, 32))
    if name == "tal-vits-1k":
        low, high = (256, 768) if depth > 5 else (256, 512) if depth > 3 else (192, 512)
        return set(range(low, high + 1, 32))
    low, high = (72, 176) if depth > 5 else (128, 176) if depth > 3 else (176, 256)
    return set(range(low, high + 1, 8))


def published_heads(dim):
    if dim % 12 == 0:
        return {3, 6, 12}
    if dim % 6 == 0:
        return {3, 6}
    if dim % 3 == 0:
        return {3}
    return {4, 8}


def parameters(depth, d, *, image=224, patch=16, classes=1000):
    tokens = (image // patch) ** 2 + 1
    block = 12 * d * d + 13 * d
    return depth * block + 3 * patch**2 * d + d + tokens * d + d + 2 * d + classes * (d + 1)


@pytest.mark.parametrize("name", ["vits-1k", "vits+-1k", "tal-vits-1k"])
def test_the_published_vit_samplers(name):
    deepest = 12 if name == "vits+-1k" else 9
    seen = {}
    for kwargs in draws(name, 4000):
        assert kwargs["num_heads"] in published_heads(kwargs["embed_dim"])
        assert kwargs["mlp_ratio"] == 4 and kwargs["class_token"]
        seen.setdefault(kwargs["depth"], set()).add(kwargs["embed_dim"])
    assert set(seen) == set(range(3, deepest + 1))
    assert all(widths == published_widths(name, depth) for depth, widths in seen.items())


@pytest.mark.parametrize(
    ("name", "low", "high", "average"),
    [("vits-1k", 1.4, 10.5, 5.2), ("vits+-1k", 1.7, 86.6, 24.9), ("tal-vits-1k", 1.7, 65, 18.7)],
)
def test_the_sizes_are_those_measured_of_the_published_generators(name, low, high, average):
    widths = SAMPLERS[name].widths
    sizes = {L: [parameters(L, d) / 1e6 for d in ds] for L, ds in widths.items()}
    every = [size for of_depth in sizes.values() for size in of_depth]
    assert min(every) == pytest.approx(low, abs=0.06)
    assert max(every) == pytest.approx(high, abs=0.5)
    assert mean(mean(of_depth) for of_depth in sizes.values()) == pytest.approx(average, rel=0.03)


def test_the_published_gpt_sampler():
    for kwargs in draws("gpts-1k", 4000):
        depth, width = kwargs["n_layer"], kwargs["n_embd"]
        assert width in published_widths("gpts-1k", depth) and kwargs["n_head"] == 8
        assert width % 8 == 0 and not kwargs["tie_word_embeddings"]
        size = (2 * 50257 + 1024) * width + depth * (12 * width**2 + 13 * width) + 2 * width
        assert size < 50e6, "the generator's limit would refuse it"
    assert {kwargs["n_layer"] for kwargs in draws("gpts-1k")} == set(range(3, 10))


def test_patches_follow_the_images():
    assert {kwargs["patch_size"] for kwargs in draws("vits-1k", 50)} == {2, 4}
    large = draws("vits+-1k", 50, image_size=224)
    assert {kwargs["patch_size"] for kwargs in large} == {16, 32}
    assert {kwargs["img_size"] for kwargs in large} == {224}
    with pytest.raises(WeightInitError, match=r"no patches for images of 100 pixels.*\[32, 224\]"):
        sample("vits-1k", torch.Generator(), image_size=100)


def test_micro_never_draws_what_is_held_out():
    pairs = {(kwargs["embed_dim"], kwargs["depth"]) for kwargs in draws("micro", 3000)}
    widths, depths = ({pair[i] for pair in pairs} for i in (0, 1))
    assert widths == {48, 64, 96, 128} and depths == {3, 4, 6, 7, 9} and len(pairs) == 20


def test_a_seed_means_the_same_architectures_and_global_state_stays():
    state = torch.get_rng_state()
    assert draws("micro", 20, seed=3) == draws("micro", 20, seed=3)
    assert draws("micro", 20, seed=3) != draws("micro", 20, seed=4)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["vits-1k", "vits+-1k", "micro"])
def test_timm_builds_them(name):
    for kwargs in draws(name, 5):
        with torch.device("meta"):
            model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs)
        assert model.embed_dim == kwargs["embed_dim"] and len(model.blocks) == kwargs["depth"]
        assert model.has_class_token == (name != "micro")
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_one_size_by_hand_and_a_sampler_of_ones_own():
    assert micro(80, 4)["num_heads"] == 5 and micro(64, 6, image_size=8)["patch_size"] == 2
    mine = Sampler("mine", {2: (24,)}, "divisors", {8: (4,)})
    assert get_sampler(mine) is mine
    assert sample(mine, torch.Generator(), image_size=8)["num_heads"] in (3, 6, 12)
    with pytest.raises(WeightInitError, match="sampler 'nope' is unknown: use one of"):
        sample("nope", torch.Generator())
