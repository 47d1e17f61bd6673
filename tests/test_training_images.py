import pytest
import torch
from PIL import Image

from weightinit.training.images import ImageFiles, Split, assemble, pixels, split_off


def test_split_off_takes_the_part_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 30)
    kept, held = split_off(labels, 0.2, torch.Generator().manual_seed(0))
    assert labels[held].bincount().tolist() == [10, 6]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(80))


def test_groups_stay_whole():
    labels = torch.tensor([0] * 20 + [1] * 20)
    groups = torch.arange(40) // 5
    kept, held = split_off(labels, 0.25, torch.Generator().manual_seed(0), groups)
    assert set(groups[held].tolist()).isdisjoint(groups[kept].tolist())
    assert labels[held].bincount().tolist() == [5, 5]


def test_validation_holds_5000_images_at_most():
    images = torch.zeros(60_000, 1, 1, 1, dtype=torch.uint8)
    pool = Split(images, torch.arange(60_000) % 10)
    test = Split(images[:10], torch.arange(10))
    data = assemble("many", pool, test, seed=0, source={"licence": "CC0"})
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10)
    assert data.describe()["images"] == {"train": 55_000, "val": 5_000, "test": 10}


@pytest.mark.parametrize(
    ("name", "flip"), [("cifar10", True), ("gtsrb", False), ("spoken_digits", False)]
)
def test_signs_and_text_are_not_mirrored(name, flip):
    images = torch.randint(256, (40, 2, 2, 3), dtype=torch.uint8)
    pool = Split(images, torch.arange(40) % 2)
    assert assemble(name, pool, None, seed=0, source={}).flip is flip


def test_files_are_resized_by_their_short_side_and_cropped(tmp_path):
    paths = []
    for i, size in enumerate([(20, 10), (10, 30)]):
        image = Image.new("RGB", size)
        image.putdata([(x * 10, y * 8, 7) for y in range(size[1]) for x in range(size[0])])
        image.save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    files = ImageFiles(tuple(paths), 10)
    out = files[torch.tensor([1, 0, 1])]
    assert len(files) == 2 and out.shape == (3, 10, 10, 3)
    assert out[1, 0, :, 0].tolist() == [x * 10 for x in range(5, 15)]
    assert out[0, :, 0, 1].tolist() == [y * 8 for y in range(10, 20)]
    assert torch.equal(out[0], out[2])
    grey = ImageFiles(tuple(paths), 6, channels=1)[torch.tensor([0])]
    assert grey.shape == (1, 6, 6, 1)


def test_pixels_of_a_pil_image():
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 1), (1, 2, 3))
    assert pixels(image).shape == (2, 3, 3) and pixels(image)[1, 2].tolist() == [1, 2, 3]
