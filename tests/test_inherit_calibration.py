from itertools import repeat

import numpy as np
import pytest
import torch
from torch import nn

from weightinit.errors import ProjectionError
from weightinit.inherit.calibration import calls_of


class Text(nn.Module):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return input_ids


IMAGES = torch.zeros(2, 3)


@pytest.mark.parametrize("batch", [IMAGES, (IMAGES, torch.zeros(2)), [IMAGES, 1], (IMAGES,)])
def test_images_come_alone_or_with_labels(batch):
    assert calls_of([batch], nn.Linear(3, 1)) == [((IMAGES,), {})]
    assert len(calls_of(iter([batch, batch]), nn.Linear(3, 1))) == 2


def test_dicts_are_keyword_arguments_without_labels():
    batch = {"input_ids": IMAGES, "attention_mask": IMAGES, "labels": IMAGES, "idx": 3}
    for given in (batch, (batch, 1)):
        (args, kwargs), *_ = calls_of([given], Text())
        assert not args and list(kwargs) == ["input_ids", "attention_mask"]


def test_a_loader_is_read_once():
    data = torch.utils.data.TensorDataset(torch.zeros(6, 3), torch.zeros(6))
    calls = calls_of(torch.utils.data.DataLoader(data, batch_size=4), nn.Linear(3, 1))
    assert [args[0].shape[0] for args, _ in calls] == [4, 2]


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (None, "pass a few unlabelled batches"),
        ([], "holds no batches"),
        (IMAGES, "is a Tensor: pass an iterable of batches"),
        ({"input_ids": IMAGES}, "is a dict: pass an iterable"),
        ("data", "is a str"),
        (3, "is a int"),
        ([IMAGES, np.zeros(3)], "batch 1 is a ndarray: pass tensors"),
        ([()], "batch 0 is a tuple"),
        ([{"pixels": IMAGES}], "has .*pixels.* takes .*input_ids"),
        ([{"labels": IMAGES}], "name what it takes, or pass tensors"),
        ([IMAGES, torch.zeros(2, 3, device="meta")], "batch 1 is on the meta device"),
        ([{"input_ids": torch.zeros(2, 3, device="meta")}], "batch 0 is on the meta device"),
        (repeat(IMAGES), r"more than 4096 batches .*islice\(loader, 20\)"),
        ([torch.zeros(1).expand(2 << 30)], "or 4 GiB, all of which are held"),
    ],
)
def test_anything_else_raises_and_says_what_to_pass(calibration, words):
    with pytest.raises(ProjectionError, match=words):
        calls_of(calibration, Text())


def test_empty_batches_are_turned_away():
    with pytest.raises(ProjectionError, match="calibration batch 1 is empty: leave it out"):
        calls_of([IMAGES, IMAGES[:0]], nn.Linear(3, 1))
