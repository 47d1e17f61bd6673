"""Files of torch.save and joblib.dump are read to the bit; nothing of a hostile one runs."""

import argparse
import io
import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from weightinit.errors import BundleError
from weightinit.hypernet import pickle_file, unpickle
from weightinit.hypernet.pickle_file import read_pickle

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
PROTOCOLS = (2, 3, 4, 5)


def zipped(value, file):
    torch.save(value, file)


def older(value, file):
    torch.save(value, file, _use_new_zipfile_serialization=False)


def dumped(compress, protocol):
    def write(value, file):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own storages
            joblib.dump(value, file, compress=compress, protocol=protocol)

    return write


def pickled(protocol):
    def write(value, file):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.write_bytes(pickle.dumps(value, protocol))

    return write


WRITERS = {
    "zip": zipped,
    "older": older,
    **{f"joblib-{protocol}": dumped(0, protocol) for protocol in PROTOCOLS},
    **{f"joblib-{name}": dumped((name, 3), 4) for name in ("zlib", "gzip", "bz2", "lzma", "xz")},
    **{f"pickle-{protocol}": pickled(protocol) for protocol in PROTOCOLS},
}


def agree(wanted, found):
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found, wanted.detach())
    elif isinstance(wanted, np.ndarray):
        assert np.array_equal(found.numpy(), wanted) and found.nbytes == wanted.nbytes
    elif isinstance(wanted, argparse.Namespace):
        agree(vars(wanted), found)
    elif isinstance(wanted, dict):
        assert type(found) is dict and list(found) == list(wanted)
        for key, value in wanted.items():
            agree(value, found[key])
    elif isinstance(wanted, (list, tuple)):
        assert type(found) is type(wanted) and len(found) == len(wanted)
        for pair in zip(wanted, found, strict=True):
            agree(*pair)
    elif isinstance(wanted, torch.device):
        assert found is None
    elif isinstance(wanted, torch.dtype):
        assert found == str(wanted)
    else:
        assert found == wanted and isinstance(wanted, type(found))


def checkpoint():
    """What a training script of the field saves."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 7)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(5)).sum().backward()
    optimizer.step()
    state = layer.state_dict()
    return {
        "state_dict": {**state, "t": state["weight"].t(), "row": state["weight"][2:4, 1::2]},
        "ordered": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(
            lr=1e-3, name="vit", device=torch.device("cuda", 0), dtype=torch.float16,
            seed=np.float64(3), nothing=None, shape=(64, 64), flags=[True, False, -5, 2**40],
        ),
        "parameter": nn.Parameter(torch.tensor(-1.5)),
        "empty": torch.zeros(0, 3),
        **{str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    }  # fmt: skip


ARRAYS = {
    "c": np.arange(24.0).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
    "strided": np.arange(24.0).reshape(4, 6)[::2, 1::3],
    "big": np.arange(3, dtype=">f4"),
    "zero": np.array(2.5, dtype="f2"),
    "empty": np.zeros((0, 4)),
    "int": np.arange(300, dtype="i2"),
    "bool": np.array([True, False]),
    "again": None,
}
ARRAYS["again"] = ARRAYS["c"]


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_saved_is_read(name, tmp_path):
    value = checkpoint()
    WRITERS[name](value, tmp_path / "old.pt")
    agree(value, read_pickle(tmp_path / "old.pt"))


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("zip", "older")])
def test_arrays_are_read(name, tmp_path):
    WRITERS[name](ARRAYS, tmp_path / "old.pt")
    agree(ARRAYS, read_pickle(tmp_path / "old.pt"))


def test_arrays_in_torch_files_are_read(tmp_path):
    for write in (zipped, older):
        write(ARRAYS, tmp_path / "old.pt")
        agree(ARRAYS, read_pickle(tmp_path / "old.pt"))


def test_a_tensor_is_memory_of_its_own(tmp_path):
    """The file may change or go afterwards."""
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt")
    found = read_pickle(tmp_path / "old.pt")["w"]
    found += 1
    assert read_pickle(tmp_path / "old.pt")["w"].tolist() == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()),
        st.tuples(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(DTYPES), st.booleans()),
        max_size=6,
    ),
    st.sampled_from(sorted(WRITERS)),
)
def test_round_trip(tmp_path_factory, described, writer):
    state = {}
    for name, (shape, dtype, flipped) in described.items():
        tensor = torch.randint(0, 100, tuple(shape)).to(dtype)
        state[name] = tensor.permute(tuple(reversed(range(tensor.ndim)))) if flipped else tensor
    file = tmp_path_factory.mktemp("round") / "old.pt"
    WRITERS[writer](state, file)
    agree(state, read_pickle(file))


class Reduced:
    """Pickles as a call of something."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def alone(value):
    return io.BytesIO(pickle.dumps(value, 4)).getvalue()


def short(*texts):
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in texts)


def archive(data, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as found:
        found.writestr("old/data.pkl", data)
        for name, value in entries.items():
            found.writestr(f"old/{name}", value)
    return file.getvalue()


def stored(tensor_arguments, numel=4, key="0", kind=b"ctorch\nFloatStorage\n"):
    """A zip file with one tensor of a storage of four numbers."""
    text = key.encode()
    storage = (
        b"(X\x07\x00\x00\x00storage" + kind + b"X" + struct.pack("<I", len(text)) + text
        + b"X\x03\x00\x00\x00cpu" + struct.pack("<BI", ord("J"), numel) + b"tQ"
    )  # fmt: skip
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + storage
    data += b"".join(pickle.dumps(part, 2)[2:-1] for part in tensor_arguments) + b"tR."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as found:
        found.writestr("old/data.pkl", data)
        found.writestr("old/data/0", bytes(16))
    return file.getvalue()


def bomb_of_zeros():
    return zlib.compress(bytes(300 * 2**20), 1)


def deep(count=100_000):
    return b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b"."


def laughs():
    """Two of two of two ...: 2^25 values in a few bytes, and no deeper than is allowed."""
    return b"\x80\x02]q\x00" + b"0]h\x00ah\x00aq\x00" * 25 + b"."


def loop():
    return b"\x80\x02]q\x00h\x00a."


def copies():
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
    return (
        b"\x80\x02]" + text + b"X\x06\x00\x00\x00latin1\x86q\x000"
        + b"c_codecs\nencode\nh\x00Ra" * 1000 + b"."
    )  # fmt: skip


def number(value):
    return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)


def older_of(numel):
    """Torch's older format: a tensor of four bytes that says how many it has."""
    parts = [pickle.dumps(value, 2) for value in (unpickle.MAGIC, 1001, {"little_endian": True})]
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + number(numel) + b"NtQ"
    )  # fmt: skip
    parts += [b"\x80\x02" + storage + b".", pickle.dumps(["0"], 2)]
    return b"".join(parts) + struct.pack("<q", numel) + bytes(4)


def joblib_array(shape):
    """joblib's description of an array of that shape, and four bytes."""
    state = {"subclass": np.ndarray, "shape": shape, "order": "C", "dtype": np.dtype("f4")}
    wrapper = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
    return b"\x80\x02" + wrapper + pickle.dumps(state, 2)[2:-1] + b"b" + bytes(4) + b"."


def called(name, argument):
    """A call of an allowed name, of what ``argument`` leaves on the stack."""
    module, _, function = name.rpartition(".")
    return b"\x80\x02" + f"c{module}\n{function}\n".encode() + argument + b"\x85R."


def nested_storages():
    """Storages made of bytes that hold storages."""
    data = b"\x80\x02]."
    for _ in range(200):
        call = b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(data)) + data
        data = b"\x80\x02" + call + b"\x85R."
    return data


ATTACKS = {
    "reduce": (alone(Reduced(os.system, "touch PWNED")), "'posix.system'"),
    "reduce_protocol_2": (pickle.dumps(Reduced(os.system, "touch PWNED"), 2), "'posix.system'"),
    "stack_global": (short("os", "system") + b"\x93" + short("ls") + b"\x85R.", "'os.system'"),
    "dotted": (short("torch", "_utils.os.system") + b"\x93.", "'torch._utils.os.system'"),
    "eval": (alone(Reduced(eval, "open('PWNED', 'w')")), "'builtins.eval'"),
    "getattr": (alone(Reduced(getattr, (1,), "real")), "'builtins.getattr'"),
    "torch_load": (alone(Reduced(torch.load, "x")), "'torch.serialization.load'"),
    "joblib_load": (alone(Reduced(joblib.load, "x")), "load'"),
    "build_setstate": (
        b"\x80\x02c__main__\nEvil\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "'__main__.Evil'",
    ),
    "build_of_a_name": (b"\x80\x02ctorch\nFloatStorage\n}b.", "sets the state"),
    "build_of_a_dict": (b"\x80\x02}}" + short("__class__") + b"K\x01sb.", "sets the state"),
    "call_of_a_value": (b"\x80\x02})R.", "calls a value"),
    "call_of_a_class": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls 'torch.FloatStorage'"),
    "new_of_a_function": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n)\x81.", "no sound pickle"),
    "new_with_arguments": (b"\x80\x02cargparse\nNamespace\nK\x01\x85\x81.", "no sound pickle"),
    "inst": (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "INST"),
    "inst_of_an_allowed_name": (b"\x80\x02(iargparse\nNamespace\n.", "INST"),
    "obj": (b"\x80\x02(cargparse\nNamespace\no.", "OBJ"),
    "obj_of_a_function": (b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.", "'os.system'"),
    "ext1": (b"\x80\x02\x82\x01.", "EXT1"),
    "ext2": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "ext4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "newobj_ex": (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "'os.system'"),
    "persid": (b"P1\n.", "PERSID"),
    "persistent_id_outside_torch": (b"\x80\x02K\x01Q.", "other than a storage in it"),
    "buffers": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "set": (b"\x80\x04\x8f.", "EMPTY_SET"),
    "protocol_0": (pickle.dumps({"a": 1}, 0), "opcode"),
    "protocol_9": (b"\x80\x09N.", "protocol 9"),
    "unhashable_key": (b"\x80\x02}]K\x01s.", "keys"),
    "deep_key": (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "keys"),
    "colliding_keys": (b"\x80\x02}\x8a\x08" + struct.pack("<q", 2**61 - 1) + b"K\x01s.", "keys"),
    "object_array": (alone(np.array([{}], dtype=object)), "dtype 'O8' is not allowed"),
    "subclass_of_array": (alone(np.ma.masked_array([1.0])), "numpy.ma"),
    "fields": (alone(np.zeros(2, dtype=[("a", "f4")])), "is not allowed"),
    "deep": (deep(), "nested too deep"),
    "deep_tuple": (b"\x80\x02)" + b"\x85" * 100_000 + b".", "nested too deep"),
    "laughs": (laughs(), "repeat"),
    "loop": (loop(), "hold themselves"),
    "copies": (copies(), "over and over"),
    "nested_storages": (nested_storages(), "over and over"),
    "deeper_key": (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "keys"),
    "deeper_key_of_items": (b"\x80\x02}()" + b"\x85" * 200_000 + b"K\x01u.", "keys"),
    "ordered_of_items": (
        called("collections.OrderedDict", b"])" + b"\x85" * 100_000 + b"K\x01\x86a"), "no sound",
    ),
    "dtype_of_laughs": (called("numpy.dtype", laughs()[2:-1]), "is not allowed"),
    "size_of_laughs": (called("torch.Size", laughs()[2:-1]), "repeat"),
    "tensor_of_laughs": (called("torch._utils._rebuild_tensor", laughs()[2:-1]), "no sound"),
    "bytes_of_a_number": (
        called("numpy.core.numeric._frombuffer", number(2**40))[:-3]
        + b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R)X\x01\x00\x00\x00CtR.", "no sound",
    ),
    "call_of_items": (b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00aR.", "calls"),
    "huge_bytearray": (b"\x80\x05\x96" + b"\x00" * 6 + b"\x10\x00a.", "no sound pickle"),
    "huge_frame": (b"\x80\x04\x95" + b"\x00" * 6 + b"\x10\x00N", "no sound pickle"),
    "older_version_of_numbers": (
        pickle.dumps(unpickle.MAGIC, 2) + pickle.dumps(np.arange(2.0), 2) + pickle.dumps({}, 2),
        "unknown version",
    ),
    "older_lies": (older_of(2**40), "states more than it has"),
    "older_lies_a_little": (older_of(2), "cut off"),
    "joblib_lies": (joblib_array((2**40,)), "no sound pickle"),
    "joblib_of_all_that_is_left": (joblib_array((-1,)), "no sound pickle"),
    "joblib_of_many_axes": (joblib_array((1,) * 1000), "no sound shape"),
    "joblib_of_long_numbers": (joblib_array((2**2000,) * 8), "no sound pickle"),
    "steps": (b"\x80\x02" + b"N0" * 150_000 + b"N.", "more steps"),
    "bomb": (bomb_of_zeros(), "expands to more than"),
    "long_line": (b"c" + b"a" * 10_000_000, "it names 'aaa"),
    "huge_text": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"a.", "cut off"),
    "huge_memo_index": (b"\x80\x02Nj\xff\xff\xff\xff.", "no sound pickle"),
    "empty_stack": (b"\x80\x02.", "no sound pickle"),
    "no_mark": (b"\x80\x02t.", "no sound pickle"),
    "left_over": (b"\x80\x02NN.", "on the stack"),
    "trailing": (b"\x80\x02N.rest", "4 bytes after its end"),
    "not_text": (b"\x80\x02X\x01\x00\x00\x00\xff.", "no sound pickle"),
    "few_arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R.", "no sound pickle"),
    "no_storage": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n(NK\x00K\x02\x85K\x01\x85tR.", "storage",
    ),
    "no_checkpoint": (b"hello world", "no sound pickle"),
    "html": (b"<!DOCTYPE html>" * 9, "opcode"),
    "lz4": (b"\x04\x22M\x18" + bytes(50), "compressed"),
    "damaged_zlib": (b"\x78\x9c" + bytes(50), "damaged|cut off"),
    "outside": (stored((2, (3,), (1,))), "does not lie in its storage"),
    "stride": (stored((0, (2, 2), (3, 1))), "does not lie in its storage"),
    "expanded": (stored((0, (10**9,), (0,))), "does not lie in its storage"),
    "huge_shape": (stored((0, (2**70, 2**70), (0, 0))), "does not lie in its storage"),
    "negative_shape": (stored((0, (-1,), (1,))), "not described"),
    "negative_stride": (stored((3, (4,), (-1,))), "not described"),
    "float_shape": (stored((0, (2.0,), (1,))), "not described"),
    "bool_shape": (stored((0, (True,), (1,))), "not described"),
    "short_stride": (stored((0, (2, 2), (1,))), "not described"),
    "many_axes": (stored((0, (1,) * 9, (1,) * 9)), "not described"),
    "numel": (stored((0, (4,), (1,)), numel=2**30), "takes 16 bytes"),
    "negative_numel": (stored((0, (4,), (1,)), numel=2**32 - 1), "something other"),
    "missing": (stored((0, (4,), (1,)), key="7"), "is missing"),
    "path": (stored((0, (4,), (1,)), key="../../etc/passwd"), "is missing"),
    "storage_of_another_kind": (stored((0, (4,), (1,)), kind=b"ctorch\nSize\n"), "something other"),
    "persistent_id_number": (archive(b"\x80\x02K\x01Q."), "something other than a storage"),
    "persistent_id_short": (archive(b"\x80\x02X\x07\x00\x00\x00storage\x85Q."), "something other"),
    "persistent_id_list": (archive(b"\x80\x02]Q."), "something other"),
    "persistent_id_text": (archive(b"\x80\x02X\x07\x00\x00\x00storageQ."), "something other"),
    "zip_that_runs": (archive(b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R."), "'posix.system'"),
    "zip_of_nothing": (archive(b""), "cut off"),
    "torchscript": (archive(b"N.", **{"constants.pkl": b""}), "not of torch.save's"),
    "big_endian": (archive(b"N.", byteorder=b"big"), "big-endian"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(name, tmp_path, monkeypatch):
    """By an error that says what to do, soon, in little memory; and nothing has run."""
    data, words = ATTACKS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unpickle, "MAX_STEPS", 250_000)  # a quarter: steps are slow when traced
    file = tmp_path / "old.pt"
    file.write_bytes(data)
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=words) as raised:
            read_pickle(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**28 and time.process_time() - began < 20
    assert len(str(raised.value)) < 1_000 and str(raised.value).isprintable()
    assert [found.name for found in tmp_path.iterdir()] == ["old.pt"]


@pytest.mark.parametrize("name", ["zip", "older", "joblib-4", "joblib-zlib", "joblib-lzma"])
def test_a_file_that_is_cut_off_or_damaged_is_refused(name, tmp_path):
    file = tmp_path / "old.pt"
    WRITERS[name]({"state_dict": {"w": torch.ones(40, 3), "b": torch.zeros(7)}}, file)
    data = file.read_bytes()
    for length in sorted({*range(0, len(data), len(data) // 97), len(data) - 1}):
        file.write_bytes(data[:length])
        with pytest.raises(BundleError):
            read_pickle(file)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["zip", "older", "joblib-2", "joblib-4", "joblib-zlib"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes_raise_nothing_else(tmp_path_factory, name, changes):
    """Whatever the bytes, the value is plain or the error is ours."""
    folder = tmp_path_factory.mktemp("changed")
    value = {"args": argparse.Namespace(a=1), "w": torch.ones(4, 3), "n": np.arange(3.0)}
    WRITERS[name](value, folder / "old.pt")
    found = bytearray((folder / "old.pt").read_bytes())
    for place, byte in changes:  # the length of a file may change from run to run
        found[int(place * len(found))] = byte
    (folder / "old.pt").write_bytes(found)
    try:
        read_pickle(folder / "old.pt")
    except BundleError as error:
        assert "old.pt" in str(error)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 2**31 - 1), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(PLAIN, st.sampled_from(PROTOCOLS))
def test_plain_values_are_those_of_pickle(tmp_path_factory, value, protocol):
    file = tmp_path_factory.mktemp("plain") / "old.pt"
    file.write_bytes(pickle.dumps(value, protocol))
    assert read_pickle(file) == value


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(unpickle.OPCODES)), max_size=30), st.binary(max_size=8))
def test_any_opcodes_are_a_value_or_refused(tmp_path_factory, codes, rest):
    file = tmp_path_factory.mktemp("codes") / "old.pt"
    file.write_bytes(bytes([*b"\x80\x02", *codes]) + rest + b".")
    try:
        read_pickle(file)
    except BundleError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("name", sorted(unpickle.NAMES))
def test_a_name_stands_for_itself(name, tmp_path):
    """It is a text, whose methods cannot be called and whose attributes cannot be set."""
    module, _, function = name.rpartition(".")
    push = b"\x80\x02" + f"c{module}\n{function}\n".encode()
    file = tmp_path / "old.pt"
    file.write_bytes(push + b".")
    assert read_pickle(file) == name
    file.write_bytes(push + b"}b.")
    with pytest.raises(BundleError, match="sets the state"):
        read_pickle(file)
    make = unpickle.NAMES[name]
    assert make is None or make.__module__ == unpickle.__name__


def test_bytes_after_the_storages_are_refused(tmp_path):
    file = tmp_path / "old.pt"
    older({"w": torch.ones(3)}, file)
    file.write_bytes(file.read_bytes() + b"\x00")
    with pytest.raises(BundleError, match="after its end"):
        read_pickle(file)


def rewritten(file, **options):
    """Write the entries of a zip file again."""
    with zipfile.ZipFile(file) as found:
        entries = [(info.filename, found.read(info)) for info in found.infolist()]
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", **options) as new:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, value in entries + entries[: 1 if not options else 0]:
            new.writestr(name, value)


def test_a_zip_bomb_is_refused(tmp_path):
    """Entries are stored by torch, and those that were deflated could be of any size."""
    file = tmp_path / "old.pt"
    torch.save({"w": torch.zeros(10_000)}, file)
    rewritten(file, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="compressed or encrypted"):
        read_pickle(file)


def test_an_entry_that_is_there_twice_is_refused(tmp_path):
    """Two readers might read another one each."""
    file = tmp_path / "old.pt"
    torch.save({"w": torch.zeros(10)}, file)
    rewritten(file)
    with pytest.raises(BundleError, match="twice"):
        read_pickle(file)


def test_entries_that_overlap_are_refused(tmp_path):
    file = tmp_path / "old.pt"
    torch.save({"w": torch.ones(10), "v": torch.zeros(10)}, file)
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as found:
        first, second = (i.header_offset for i in found.infolist() if "/data/" in i.filename)
        directory = found.start_dir
    at = data.index(struct.pack("<I", second), directory)
    data[at : at + 4] = struct.pack("<I", first)
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"overlap|damaged"):
        read_pickle(file)


def test_a_directory_of_too_many_entries_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "old.pt"
    torch.save({str(i): torch.ones(1) for i in range(300)}, file)
    monkeypatch.setattr(pickle_file, "MAX_ENTRIES", 20)
    with pytest.raises(BundleError, match="sane length"):
        read_pickle(file)


def test_paths_and_limits(tmp_path):
    with pytest.raises(BundleError, match="no file"):
        read_pickle(tmp_path)
    with pytest.raises(BundleError, match="no file"):
        read_pickle(tmp_path / "absent.pt")
    torch.save({"w": torch.ones(100)}, tmp_path / "old.pt")
    with pytest.raises(BundleError, match="max_bytes="):
        read_pickle(tmp_path / "old.pt", max_bytes=100)


def test_a_storage_in_two_ways_is_refused(tmp_path):
    storage = b"(X\x07\x00\x00\x00storagectorch\n%s\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    data = b"\x80\x02" + storage % b"FloatStorage" + storage % b"IntStorage" + b"\x86."
    (tmp_path / "old.pt").write_bytes(archive(data, **{"data/0": bytes(16)}))
    with pytest.raises(BundleError, match="in two ways"):
        read_pickle(tmp_path / "old.pt")
