import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightinit.errors import WeightInitError
from weightinit.training.augment import batches, crop_and_flip, normalise, seeded
from weightinit.training.data import ImageData, Split


def colours(count=48, size=16):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=draw)
    part = Split(images, torch.arange(count) % 4)
    return ImageData("colours", part, part, part, 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), flip=True)


@given(
    size=st.tuples(*[st.integers(1, 19)] * 2),
    channels=st.sampled_from([1, 3]),
    flip=st.booleans(),
    seed=st.integers(0, 2**30),
)
def test_crops_are_windows_of_the_padded_image_or_its_mirror(size, channels, flip, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (5, *size, channels), dtype=torch.uint8, generator=draw)
    out = crop_and_flip(images, flip, draw)
    assert out.shape == images.shape and out.dtype == torch.uint8
    py, px = size[0] // 8, size[1] // 8
    for image, found in zip(images.numpy(), out.numpy(), strict=True):
        padded = np.pad(image, ((py, py), (px, px), (0, 0)))
        windows = [
            padded[y : y + size[0], x : x + size[1]]
            for y in range(2 * py + 1)
            for x in range(2 * px + 1)
        ]
        windows += [w[:, ::-1] for w in windows if flip]
        assert any(np.array_equal(found, w) for w in windows)


def test_crops_and_mirrors_do_occur():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(64, -1, -1, -1)
    out = crop_and_flip(image, True, torch.Generator().manual_seed(0))
    assert len({bytes(o.numpy()) for o in out}) > 25
    mirrored = (out[:, 8, 8, 0].int() - out[:, 8, 7, 0].int()) < 0
    assert 16 < int(mirrored.sum()) < 48


def test_every_image_is_seen_once_an_epoch_in_a_new_order():
    data = colours()
    seen = []
    for epoch in range(2):
        steps = range(4 * epoch, 4 * epoch + 4)
        parts = batches(data, steps=steps, batch_size=12, augment="none", seed=1)
        seen.append(torch.cat([x for x, _ in parts]))
    flat = [sorted(s.flatten(1).sum(1).tolist()) for s in seen]
    assert flat[0] == pytest.approx(flat[1])
    assert len(set(flat[0])) == 48
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("augment", ["none", "light", "paper"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    options = {"batch_size": 8, "augment": augment, "label_smoothing": 0.1}
    whole = list(batches(colours(), steps=range(7), seed=3, **options))
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    resumed = list(batches(colours(), steps=range(4, 7), seed=3, **options))
    for (x, y), (u, v) in zip(whole[4:], resumed, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
        assert x.shape == (8, 3, 16, 16) and y.sum(1) == pytest.approx([1.0] * 8)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert (state[2] == np.random.get_state()[1]).all()
    other = next(iter(batches(colours(), steps=range(4, 5), seed=4, **options)))
    assert not torch.equal(other[0], resumed[0][0])


def test_processes_share_a_batch():
    options = {"steps": range(3), "batch_size": 12, "augment": "none", "seed": 0}
    whole = list(batches(colours(), **options))
    halves = [list(batches(colours(), rank=r, world=2, **options)) for r in range(2)]
    for step in range(3):
        merged = torch.stack([halves[r][step][0] for r in range(2)], 1).flatten(0, 1)
        assert torch.equal(merged, whole[step][0])


def test_normalise_against_float64():
    data = colours()
    x = normalise(data.train.images, data).double()
    slow = data.train.images.double().numpy() / 255
    slow = (slow - np.array(data.mean)) / np.array(data.std)
    assert torch.allclose(x, torch.from_numpy(slow).permute(0, 3, 1, 2), atol=1e-6)


def test_seeded_puts_the_generators_back_after_an_error():
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(KeyError), seeded(5):
        torch.rand(3), random.random()
        raise KeyError
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "heavy"}, "augment 'heavy' is unknown: use one of"),
        ({"batch_size": 64}, "no larger than the data"),
        ({"world": 5}, "multiple of 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    options = {"steps": range(1), "batch_size": 12, "augment": "light", "seed": 0} | options
    with pytest.raises(WeightInitError, match=message):
        next(iter(batches(colours(), **options)))


def test_paper_augmentation_needs_colour():
    data = colours()
    grey = Split(data.train.images[..., :1], data.train.labels)
    grey = ImageData("grey", grey, grey, grey, 4, (0.5,), (0.2,), flip=False)
    with pytest.raises(WeightInitError, match="use augment 'light'"):
        next(iter(batches(grey, steps=range(1), batch_size=8, augment="paper", seed=0)))
