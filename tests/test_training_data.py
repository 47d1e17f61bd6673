import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from weightinit.errors import WeightInitError
from weightinit.training.data import load_data
from weightinit.training.images import ImageFiles


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


def test_pack_is_found_by_name(tmp_path, monkeypatch):
    pack(tmp_path / "things.safetensors")
    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    assert load_data("things").name == "things"


def test_images_of_one_track_stay_on_one_side(tmp_path):
    tracks = torch.arange(40) // 4 + 100 * (torch.arange(40) % 4)
    pack(tmp_path / "t.safetensors", track_train=tracks.int())
    data = load_data(tmp_path / "t.safetensors")
    images = pack(tmp_path / "u.safetensors")[0]
    track = {bytes(i.numpy()): int(t) for i, t in zip(images, tracks, strict=True)}
    sides = [{track[row] for row in rows(part)} for part in (data.train, data.val)]
    assert sides[1] and not sides[0] & sides[1]


def jpeg_pack(path):
    """CIFAR's layout: files that share one header."""
    from io import BytesIO

    files = []
    for i in range(20):
        pixels = np.full((8, 8, 3), 12 * i, np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    start = files[0].index(b"\xff\xda")
    offsets = [0, *itertools.accumulate(len(f) - start for f in files)]
    body = b"".join(f[start:] for f in files)
    assert all(f[:start] == files[0][:start] for f in files)
    save_file(
        {
            "header": torch.tensor(list(files[0][:start]), dtype=torch.uint8),
            "body": torch.tensor(list(body), dtype=torch.uint8),
            "offsets": torch.tensor(offsets),
            "labels": (torch.arange(20) % 2).to(torch.uint8),
            "split": (torch.arange(20) >= 16).to(torch.uint8),
        },
        path,
        metadata={"name": "cifar10"},
    )


def test_jpeg_pack_is_decoded_once(tmp_path, monkeypatch):
    path, cache = tmp_path / "c.safetensors", tmp_path / "cache"
    jpeg_pack(path)
    data = load_data(path, cache_dir=cache)
    assert data.test.images[:, 0, 0, 0].float().tolist() == pytest.approx(
        [12 * i for i in range(16, 20)], abs=3
    )
    assert data.test.labels.tolist() == [0, 1, 0, 1] and len(data.train) + len(data.val) == 16
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    again = load_data(path, cache_dir=cache)
    assert torch.equal(again.train.images, data.train.images)
    assert [p.suffix for p in cache.iterdir()] == [".safetensors"]


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
    import torchvision.datasets

    class Fake:
        def __init__(self, root, train, download):
            count = 100 if train else 20
            self.data = np.zeros((count, 4, 4, 3), np.uint8)
            self.targets = [i % 10 for i in range(count)]

    monkeypatch.setenv("WEIGHTINIT_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = load_data("cifar10", cache_dir=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (90, 10, 20)

    def offline(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(WeightInitError, match="set WEIGHTINIT_DATA"):
        load_data("cifar10", cache_dir=tmp_path)
