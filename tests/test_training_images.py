import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import vit
from helpers.training import colours
from PIL import Image

from weightinit.errors import WeightInitError
from weightinit.training.data import load_data
from weightinit.training.images import ImageData, ImageFiles, Split


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_every_image_is_seen_once_an_epoch_in_a_new_order():
    data = colours()
    seen = []
    for epoch in range(2):
        steps = range(4 * epoch, 4 * epoch + 4)
        parts = data.batches(steps, batch_size=12, augment="none", seed=1)
        seen.append(torch.cat([x for x, _ in parts]))
    flat = [sorted(s.flatten(1).sum(1).tolist()) for s in seen]
    assert flat[0] == pytest.approx(flat[1])
    assert len(set(flat[0])) == 48
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("augment", ["none", "light", "paper"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    options = {"batch_size": 8, "augment": augment, "label_smoothing": 0.1}
    whole = list(colours().batches(range(7), seed=3, **options))
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    resumed = list(colours().batches(range(4, 7), seed=3, **options))
    for (x, y), (u, v) in zip(whole[4:], resumed, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
        assert x.shape == (8, 3, 16, 16) and y.sum(1) == pytest.approx([1.0] * 8)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1] == random.getstate()
    assert (state[2] == np.random.get_state()[1]).all()
    other = next(iter(colours().batches(range(4, 5), seed=4, **options)))
    assert not torch.equal(other[0], resumed[0][0])


def test_processes_share_a_batch():
    options = {"batch_size": 12, "augment": "none", "seed": 0}
    whole = list(colours().batches(range(3), **options))
    halves = [list(colours().batches(range(3), rank=r, world=2, **options)) for r in range(2)]
    for step in range(3):
        merged = torch.stack([halves[r][step][0] for r in range(2)], 1).flatten(0, 1)
        assert torch.equal(merged, whole[step][0])


def test_normalise_against_float64():
    data = colours()
    x = data.normalise(data.train.images).double()
    slow = data.train.images.double().numpy() / 255
    slow = (slow - np.array(data.mean)) / np.array(data.std)
    assert torch.allclose(x, torch.from_numpy(slow).permute(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "heavy"}, "augment 'heavy' is unknown: use one of"),
        ({"batch_size": 64}, "no larger than the data"),
        ({"world": 5}, "multiple of 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    options = {"batch_size": 12, "augment": "light", "seed": 0} | options
    with pytest.raises(WeightInitError, match=message):
        next(iter(colours().batches(range(1), **options)))


def test_paper_augmentation_needs_colour():
    data = colours()
    grey = Split(data.train.images[..., :1], data.train.labels)
    grey = ImageData("grey", grey, grey, grey, 4, (0.5,), (0.2,), flip=False)
    with pytest.raises(WeightInitError, match="use augment 'light'"):
        next(iter(grey.batches(range(1), batch_size=8, augment="paper", seed=0)))


def test_files_are_resized_by_their_short_side_and_cropped(tmp_path):
    paths = []
    for i, size in enumerate([(20, 10), (10, 30)]):
        image = Image.new("RGB", size)
        image.putdata([(x * 10, y * 8, 7) for y in range(size[1]) for x in range(size[0])])
        image.save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    files = ImageFiles(tuple(paths), 10)
    out = files[torch.tensor([1, 0, 1])]
    assert files.shape == (2, 10, 10, 3) and out.shape == (3, 10, 10, 3)
    assert out[1, 0, :, 0].tolist() == [x * 10 for x in range(5, 15)]
    assert out[0, :, 0, 1].tolist() == [y * 8 for y in range(10, 20)]
    assert torch.equal(out[0], out[2])
    grey = ImageFiles(tuple(paths), 6, channels=1)[torch.tensor([0])]
    assert grey.shape == (1, 6, 6, 1)


def test_grey_images_become_as_wide_as_colour_ones(digits):
    found = digits.in_shape(8)
    assert found.train.images.shape == (1259, 8, 8, 3) and found.train.images.dtype == torch.uint8
    assert all(torch.equal(found.val.images[..., c : c + 1], digits.val.images) for c in range(3))
    assert found.mean == digits.mean * 3 and found.std == digits.std * 3
    assert found.normalise(found.test.images[:4]).std() == pytest.approx(1, abs=0.2)
    same = found.in_shape(8)
    assert torch.equal(same.train.images, found.train.images) and same.mean == found.mean


def test_images_are_resized_as_pillow_does(digits):
    found = digits.in_shape(28, channels=1)
    assert found.train.images.shape[1:] == (28, 28, 1)
    small = found.in_shape(14, channels=1)
    for i in range(5):
        picture = Image.fromarray(found.test.images[i, ..., 0].numpy())
        wanted = torch.tensor(list(picture.resize((14, 14), Image.Resampling.BILINEAR).tobytes()))
        assert (small.test.images[i].flatten().int() - wanted).abs().max() <= 1
    with pytest.raises(WeightInitError, match="has 3 channels and 1 are asked for: use channels=3"):
        digits.in_shape(8).in_shape(8, channels=1)


def test_files_are_resized_as_they_are_read(tmp_path, digits):
    Image.new("L", (20, 10), 128).save(tmp_path / "a.png")
    files = Split(ImageFiles((tmp_path / "a.png",), 8, 1), torch.zeros(1, dtype=torch.long))
    found = replace(digits, train=files).in_shape(12).train.images
    assert found[torch.tensor([0])].shape == (1, 12, 12, 3)


def test_the_score_is_the_accuracy_and_every_mode_is_put_back(digits):
    model = vit(num_classes=10).train()
    model.norm.eval()
    score = digits.score(model, batch_size=7)
    assert model.training and not model.norm.training
    with torch.no_grad():
        guesses = model.eval()(digits.normalise(digits.val.images)).argmax(1)
    right = int((guesses == digits.val.labels).sum())
    assert score == 100 * right / len(digits.val)
    assert digits.score(model, digits.test) != score


def test_training_images_are_read_once(digits):
    inputs = torch.cat(list(digits.inputs(1000)))
    assert torch.equal(inputs, digits.normalise(digits.train.images))
