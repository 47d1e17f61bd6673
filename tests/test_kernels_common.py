import importlib.util

import pytest
import torch

from weightinit import WeightInitError
from weightinit.kernels import common

CPU = torch.device("cpu")


def test_no_triton_no_module(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert common.triton_module.__wrapped__("kron_triton") is None


def test_the_module_of_that_name():
    pytest.importorskip("triton")
    assert common.triton_module("kron_triton").__name__ == "weightinit.kernels.kron_triton"


def test_one_destination_or_one_for_each_layer():
    out = torch.empty(3, 4, 5)
    assert common.destinations(out, (3, 4, 5), 2, CPU, "inputs") == (out,)
    layers = list(out)
    assert common.destinations(layers, (3, 4, 5), 2, CPU, "inputs") == tuple(layers)


@pytest.mark.parametrize(
    ("out", "shape", "message"),
    [
        (torch.empty(3, 4), (3, 5), r"\[3, 4\], but inputs make \[3, 5\]; pass a floating tensor"),
        (torch.empty(3, 5, dtype=torch.int64), (3, 5), "int64"),
        (torch.empty(3, 5, device="meta"), (3, 5), "on meta and the inputs on cpu; move"),
        ([torch.empty(3, 5)], (2, 3, 5), r"1 tensors, but inputs make \[2, 3, 5\]"),
        ([torch.empty(3, 5)] * 2, (2, 2, 3, 5), "single leading axis"),
    ],
)
def test_other_destinations_are_refused(out, shape, message):
    with pytest.raises(WeightInitError, match=message):
        common.destinations(out, shape, 2, CPU, "inputs")


def test_matrices_are_views():
    tensor = torch.zeros(2, 3, 4, 5)
    parts = common.matrices(tensor)
    assert [tuple(part.shape) for part in parts] == [(4, 5)] * 6
    parts[5].fill_(1)
    assert tensor[1, 2].sum() == 20
