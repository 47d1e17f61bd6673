from collections import Counter
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from helpers.models import vit

from weightinit.errors import WeightInitError
from weightinit.hypernet.samplers import get_sampler
from weightinit.inherit.running import captured
from weightinit.training.data import load_data
from weightinit.training.tasks import (
    check_tasks,
    image_size,
    probabilities,
    task_batches,
    task_embedding,
)
from weightinit.training.text import TextData

OPTIONS = {"batch_size": 8, "augment": "light", "seed": 3}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def tasks(digits):
    """Three tasks of 900, 200 and 100 images, told apart by their classes."""
    every = torch.arange(1200).split([900, 200, 100])
    cut = [digits.train.rows(index) for index in every]
    return [
        replace(digits, train=part, classes=10 + extra, name=f"part{extra}")
        for extra, part in enumerate(cut)
    ]


def test_probabilities_are_the_papers():
    assert probabilities([1, 3, 12], 1.0).tolist() == pytest.approx([1 / 16, 3 / 16, 12 / 16])
    assert probabilities([4, 16, 64]).tolist() == pytest.approx([2 / 14, 4 / 14, 8 / 14])
    assert probabilities([1, 99], 1e9).tolist() == pytest.approx([0.5, 0.5])
    for sizes, temperature in (([], 2.0), ([3, 0], 2.0), ([3], 0.0)):
        with pytest.raises(WeightInitError, match="must all be positive"):
            probabilities(sizes, temperature)


def test_tasks_are_drawn_as_often_as_that(tasks):
    options = OPTIONS | {"augment": "none", "batch_size": 1}
    drawn = Counter(task for task, *_ in task_batches(tasks, range(6000), **options))
    expected = probabilities([900, 200, 100])
    for task, p in enumerate(expected.tolist()):
        assert drawn[task] / 6000 == pytest.approx(p, abs=4 * (p * (1 - p) / 6000) ** 0.5)


def test_a_step_is_the_same_wherever_the_run_starts(tasks):
    whole = list(task_batches(tasks, range(40), **OPTIONS))
    rest = list(task_batches(tasks, range(25, 40), **OPTIONS))
    for (task, images, targets), (again, *tensors) in zip(whole[25:], rest, strict=True):
        assert task == again and torch.equal(images, tensors[0])
        assert torch.equal(targets, tensors[1]) and targets.shape[1] == tasks[task].classes
    assert len({task for task, *_ in whole}) == 3


def test_batches_never_end_and_see_every_image_once_an_epoch(tasks):
    options = OPTIONS | {"augment": "none", "batch_size": 50}
    found = task_batches(tasks, range(60), **options)
    seen = [images for task, images, _ in found if task == 2]
    assert len(seen) > 4, "more than two epochs of the small task"
    for first in range(0, len(seen) // 2 * 2, 2):
        assert len(torch.cat(seen[first : first + 2]).flatten(1).unique(dim=0)) >= 99


def test_processes_agree_on_the_task_and_share_the_batch(tasks):
    options = OPTIONS | {"augment": "none"}
    whole = list(task_batches(tasks, range(12), **options))
    ranks = [list(task_batches(tasks, range(12), rank=r, world=2, **options)) for r in (0, 1)]
    for (task, images, _), (a, left, _), (b, right, _) in zip(whole, *ranks, strict=True):
        assert task == a == b
        assert torch.equal(images[0::2], left) and torch.equal(images[1::2], right)


def test_one_task_is_plain_training(digits):
    plain = digits.batches(range(3), **OPTIONS)
    for (task, *tensors), expected in zip(
        task_batches([digits], range(3), **OPTIONS), plain, strict=True
    ):
        assert task == 0 and all(map(torch.equal, tensors, expected))


def test_tasks_go_together(digits):
    text = TextData("n", torch.arange(40), torch.arange(10), 50, 4)
    for wrong in ([], [text, digits]):
        with pytest.raises(WeightInitError, match="all images or all texts"):
            check_tasks(wrong)
    with pytest.raises(WeightInitError, match="trains no GPT-2: use another for texts"):
        check_tasks([text], get_sampler("micro"))
    with pytest.raises(WeightInitError, match="trains no vision transformers"):
        check_tasks([digits], get_sampler("gpts-1k"))
    assert image_size([digits]) == 8 and image_size([text]) == 0
    with pytest.raises(WeightInitError, match="bring them to one square shape"):
        image_size([digits, digits.in_shape(12)])


def test_an_embedding_is_the_mean_feature_of_the_training_images(digits):
    for changes in ({}, {"class_token": True, "global_pool": "token"}):
        model = vit(**changes).train()
        found = task_embedding(model, digits, batch_size=400)
        assert model.training and not model.head._forward_pre_hooks
        with torch.no_grad():
            images = digits.normalise(digits.train.images)
            feature = model.forward_head(model.eval().forward_features(images), pre_logits=True)
        assert torch.allclose(found, feature.mean(0), atol=1e-5) and found.shape == (16,)
    other = replace(digits, train=digits.train.rows(torch.arange(100)))
    assert not torch.allclose(task_embedding(model, other), found, atol=1e-3)


def test_features_of_other_libraries_and_of_models_without_a_head():
    images = torch.randn(2, 3, 32, 32)
    model = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=5).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    with captured(model) as found:
        logits = model(images)
    assert torch.allclose(model.heads.head(found[0]), logits)
    bare = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=1,
        embed_dim=32,
        num_heads=2,
        num_classes=0,
    ).eval()
    with captured(bare) as found:
        out = bare(images)
    assert found[0] is out and out.shape == (2, 32)
