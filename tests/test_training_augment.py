import numpy as np
import torch
from helpers.training import colours
from hypothesis import given
from hypothesis import strategies as st

from weightinit.training.augment import crop_and_flip


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


def test_heavy_batches_mix_pairs_of_images_and_their_labels():
    parts = list(colours().batches(range(12), batch_size=16, augment="paper", seed=0))
    targets = torch.cat([targets for _, targets in parts])
    assert targets.shape == (192, 4) and torch.allclose(targets.sum(1), torch.ones(192))
    assert ((targets > 0).sum(1) <= 2).all() and ((targets > 0).sum(1) == 2).any()
    assert all(images.shape == (16, 3, 16, 16) for images, _ in parts)


def test_workers_augment_alike():
    alone, helped = (
        list(colours().batches(range(2), batch_size=8, augment="paper", seed=0, workers=workers))
        for workers in (0, 1)
    )
    for a, b in zip(alone, helped, strict=True):
        assert all(map(torch.equal, a, b))
