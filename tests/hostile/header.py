"""Attacks by the header of model.safetensors."""

import json

from hostile.base import attack, edit_header, write_weights

TERA = 2**40
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FIRST = "templates.attn.qkv.weight"


def entry(**changes):
    """Return a builder's body: the first template's entry with these changes."""
    return lambda header: header[FIRST].update(changes)


@attack("states a header of")
def length_of_terabytes(folder):
    write_weights(folder, {"a": ONE}, b"\0" * 4, length=8 * TERA)


@attack("states a header of")
def length_over_limit(folder):
    write_weights(folder, b"{" + b" " * 11_000_000 + b"}")


@attack("states a header of")
def length_beyond_file(folder):
    write_weights(folder, {"a": ONE}, length=9_000_000)


@attack("states a header of")
def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


@attack("states a header of")
def seven_bytes(folder):
    (folder / "model.safetensors").write_bytes(b"\1" * 7)


@attack("not sound JSON")
def garbage(folder):
    write_weights(folder, b"{" + b"\xff\xfe" * 100)


@attack("holds a JSON list")
def array(folder):
    write_weights(folder, b"[1, 2, 3]")


@attack("not sound JSON")
def deep_nesting(folder):
    write_weights(folder, b'{"a":' + b"[" * 9_000_000)


@attack("more than .* entries")
def millions_of_numbers(folder):
    write_weights(folder, b'{"a":[' + b"0," * 4_900_000 + b"0]}")


@attack("more than .* entries")
def millions_of_objects(folder):
    write_weights(folder, b'{"a":[' + b"{}," * 3_200_000 + b"{}]}")


@attack("allowed are 1 to 10000")
def too_many_tensors(folder):
    empty = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_weights(folder, {f"t{i}": empty for i in range(10_001)}, b"\0" * 4)


@attack("allowed are 1 to 10000")
def no_tensors(folder):
    write_weights(folder, {"__metadata__": {"format": "pt"}})


@attack("appears twice")
def duplicate_tensor(folder):
    one = json.dumps(ONE)
    write_weights(folder, f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 4)


@attack("appears twice")
def duplicate_dtype(folder):
    raw = b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}'
    write_weights(folder, raw, b"\0" * 4)


@attack("too long")
def endless_number(folder):
    write_weights(folder, b'{"a":{"dtype":"F32","shape":[' + b"9" * 9_000_000 + b"]}}")


@attack("not finite")
def number_nan(folder):
    write_weights(folder, b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}')


def renamed(name):
    def change(header):
        header[name] = header.pop(FIRST)

    return change


@attack("is not allowed")
def name_of_path(folder):
    edit_header(folder, renamed("../../etc/passwd"))


@attack("is not allowed")
def name_with_dots(folder):
    edit_header(folder, renamed("templates..weight"))


@attack("is not allowed")
def name_empty(folder):
    edit_header(folder, renamed(""))


@attack("is not allowed")
def name_too_long(folder):
    edit_header(folder, renamed("a" * 1_000_000))


@attack("is not allowed")
def name_of_terminal_codes(folder):
    edit_header(folder, renamed("\x1b[2Jtemplates"))


@attack("is not allowed")
def name_with_newline(folder):
    edit_header(folder, renamed(FIRST + "\n"))


@attack("has dtype")
def dtype_int64(folder):
    edit_header(folder, entry(dtype="I64", shape=[1, 8, 8]))


@attack("has dtype")
def dtype_float64(folder):
    edit_header(folder, entry(dtype="F64", shape=[1, 8, 8]))


@attack("has dtype")
def dtype_map(folder):
    edit_header(folder, entry(dtype={"F32": None}))


@attack("damaged, cut off, or no safetensors file")
def dtype_list(folder):
    edit_header(folder, entry(dtype=["F32"]))


@attack("at most 6 axes")
def rank_of_thousands(folder):
    edit_header(folder, entry(shape=[1] * 50_000 + [2, 8, 8]))


@attack("damaged, cut off, or no safetensors file")
def axis_negative(folder):
    edit_header(folder, entry(shape=[-2, -8, 8]))


@attack("positive whole number")
def axis_zero(folder):
    write_weights(folder, {"a": ONE | {"shape": [0], "data_offsets": [0, 0]}})


@attack("damaged, cut off, or no safetensors file")
def axis_fraction(folder):
    edit_header(folder, entry(shape=[2.0, 8, 8]))


@attack("damaged, cut off, or no safetensors file")
def axis_true(folder):
    edit_header(folder, entry(shape=[True, 16, 8]))


@attack("damaged, cut off, or no safetensors file")
def shape_text(folder):
    edit_header(folder, entry(shape="288"))


@attack("damaged, cut off, or no safetensors file")
def shape_of_terabytes(folder):
    edit_header(folder, entry(shape=[TERA, 8, 8]))


@attack("damaged, cut off, or no safetensors file")
def shape_overflows(folder):
    edit_header(folder, entry(shape=[2**32, 2**32]))


@attack("damaged, cut off, or no safetensors file")
def offsets_of_terabytes(folder):
    write_weights(folder, {"a": {"dtype": "F32", "shape": [TERA], "data_offsets": [0, 4 * TERA]}})


@attack("damaged, cut off, or no safetensors file")
def offsets_overlap(folder):
    write_weights(folder, {"a": ONE, "b": ONE}, b"\0" * 4)


@attack("damaged, cut off, or no safetensors file")
def offsets_gap(folder):
    write_weights(folder, {"a": ONE, "b": ONE | {"data_offsets": [8, 12]}}, b"\0" * 12)


@attack("damaged, cut off, or no safetensors file")
def offsets_reversed(folder):
    edit_header(folder, entry(data_offsets=[512, 0]))


@attack("damaged, cut off, or no safetensors file")
def offsets_negative(folder):
    edit_header(folder, entry(data_offsets=[-512, 0]))


@attack("damaged, cut off, or no safetensors file")
def offsets_three(folder):
    edit_header(folder, entry(data_offsets=[0, 4, 8]))


@attack("damaged, cut off, or no safetensors file")
def bytes_to_spare(folder):
    write_weights(folder, {"a": ONE}, b"\0" * 4 + b"#!/bin/sh")


@attack("and no more")
def entry_with_code(folder):
    edit_header(folder, entry(loader="os.system"))


@attack("damaged, cut off, or no safetensors file")
def entry_number(folder):
    write_weights(folder, {"a": 4})
