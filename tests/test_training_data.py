import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from weightinit.errors import WeightInitError
from weightinit.training import data
from weightinit.training.data import assemble, load_data, split_off
from weightinit.training.images import ImageFiles, Split


def rows(split):
    return {bytes(image.numpy()) for image in split.images}


def pack(path, count=40, channels=3, **more):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 6, 6, channels), dtype=torch.uint8, generator=draw)
    labels = (torch.arange(count) % 4).to(torch.uint8)
    tensors = {f"images_{p}": images for p in ("train", "test")}
    tensors |= {f"labels_{p}": labels for p in ("train", "test")} | more
    tensors = {name: t.clone() for name, t in tensors.items()}
    save_file(tensors, path, metadata={"metadata": '{"name": "things", "licence": "CC0"}'})
    return images, labels


def test_digits_are_split_by_class_and_share_no_image():
    data = load_data("digits")
    assert sum(map(len, (data.train, data.val, data.test))) == 1797
    assert not data.flip and data.train.images.shape[1:] == (8, 8, 1)
    assert not rows(data.test) & (rows(data.train) | rows(data.val))
    for part in (data.val, data.test):
        counts = part.labels.bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 2
    values = data.train.images.double() / 255
    assert data.mean == pytest.approx((float(values.mean()),), abs=1e-4)
    assert data.std == pytest.approx((float(values.std()),), abs=1e-4)


def test_split_depends_on_the_seed_alone():
    first, again, other = (load_data("digits", seed=s).val.images for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pack_keeps_its_own_test_images(tmp_path):
    images, labels = pack(tmp_path / "things.safetensors")
    data = load_data(tmp_path / "things.safetensors")
    assert torch.equal(data.test.images, images) and torch.equal(data.test.labels, labels.long())
    assert len(data.train) == 36 and len(data.val) == 4 and data.classes == 4 and data.flip
    assert data.val.labels.tolist() == [0, 1, 2, 3] or sorted(data.val.labels) == [0, 1, 2, 3]
    assert data.describe()["licence"] == "CC0"


def test_data_is_found_by_name(tmp_path, monkeypatch):
    pack(tmp_path / "things.safetensors")
    folder(tmp_path / "animals", ("",))
    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    assert load_data("things").name == "things" and load_data("animals").name == "animals"


def test_images_of_one_track_stay_on_one_side(tmp_path):
    tracks = torch.arange(40) // 4 + 100 * (torch.arange(40) % 4)
    pack(tmp_path / "t.safetensors", track_train=tracks.int())
    data = load_data(tmp_path / "t.safetensors")
    images = pack(tmp_path / "u.safetensors")[0]
    track = {bytes(i.numpy()): int(t) for i, t in zip(images, tracks, strict=True)}
    sides = [{track[row] for row in rows(part)} for part in (data.train, data.val)]
    assert sides[1] and not sides[0] & sides[1]


def folder(root, parts):
    for part in parts:
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (12, 9), (100 * label, i, 0)).save(root / part / name / f"{i}.png")


@pytest.mark.parametrize("parts", [("",), ("train", "test"), ("train", "val")])
def test_folder_of_images_is_decoded_on_demand(tmp_path, parts):
    folder(tmp_path, parts)
    data = load_data(tmp_path, image_size=6)
    assert isinstance(data.train.images, ImageFiles) and data.classes == 2
    images = data.test.images[torch.arange(3)]
    assert images.shape == (3, 6, 6, 3) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [100 * int(v) for v in data.test.labels[:3]]
    assert len(data.test) == (20 if len(parts) == 2 else 4)
    paths = [set(p.images.paths) for p in (data.train, data.val, data.test)]
    assert not paths[0] & paths[1] and not (paths[0] | paths[1]) & paths[2]


def test_what_is_no_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    with pytest.raises(WeightInitError, match=r"'nothing' is not found: use 'digits'"):
        load_data("nothing")
    with pytest.raises(WeightInitError, match="no images in sub-folders"):
        load_data(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightInitError, match="a pack needs images_train"):
        load_data(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"not one")
    with pytest.raises(WeightInitError, match="not a safetensors file"):
        load_data(tmp_path / "y.safetensors")


def test_cifar10_comes_from_torchvision_where_there_is_no_pack(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            count = 100 if train else 20
            self.data = np.zeros((count, 4, 4, 3), np.uint8)
            self.targets = [i % 10 for i in range(count)]

    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    monkeypatch.setattr(data, "CIFAR10", Fake)
    found = load_data("cifar10", cache_dir=tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (90, 10, 20)

    def offline(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(data, "CIFAR10", offline)
    with pytest.raises(WeightInitError, match="set WEIGHTINIT_DATA"):
        load_data("cifar10", cache_dir=tmp_path)


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
