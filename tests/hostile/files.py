"""Attacks by the files themselves: what is missing, cut, swapped, or not a file at all."""

import io
import os
import pickle
import zipfile

from hostile.base import attack, seal

TERA = 2**40


def truncated(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


@attack("damaged, cut off, or no safetensors file")
def weights_cut(folder):
    path = folder / "model.safetensors"
    truncated(path, path.stat().st_size - 100)
    seal(folder)


@attack("cut off")
def weights_cut_in_header(folder):
    truncated(folder / "model.safetensors", 100)


@attack("over the limit of .* max_bytes")
def weights_of_terabytes(folder):
    truncated(folder / "model.safetensors", TERA)  # sparse: it takes no space


@attack("over the limit")
def config_of_terabytes(folder):
    truncated(folder / "config.json", TERA)


@attack("over the limit")
def card_of_terabytes(folder):
    truncated(folder / "README.md", TERA)


@attack("sha256")
def weights_replaced(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@attack("never reads pickles")
def pickle_renamed(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


@attack("never reads pickles")
def torch_archive_renamed(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": [1.0]}))
    (folder / "model.safetensors").write_bytes(buffer.getvalue())


@attack("pytorch_model.bin, which weightinit never reads")
def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@attack("holds no config.json and no model.safetensors")
def nothing(folder):
    for path in folder.iterdir():
        path.unlink()


@attack("not a regular file")
def config_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


@attack("not a regular file")
def weights_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


@attack("not a regular file")
def weights_pipe(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")  # opening it would wait for ever


@attack("not a regular file")
def config_endless_device(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


@attack("holds no config.json")
def config_link_to_itself(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
