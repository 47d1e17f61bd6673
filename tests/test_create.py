"""A model built and filled in one call: the same as in two."""

import pytest
import timm
import torch
from helpers.models import make_bundle, vit

import weightinit as wi
from weightinit.starts import kind_of

SIZE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4}
NAME = "vit_tiny_patch16_224"


def starts():
    yield "nothing", None, {}, wi.init_from_templates
    yield "a bundle", make_bundle(), {}, lambda m, s: wi.init_from_templates(m, s)
    yield "a name", "digits-w32", {"scalers": "linear"}, wi.init_from_templates
    yield "a hypernetwork", "logah-cifar10", {}, wi.init_from_hypernet
    yield "an ancestor", vit(depth=2), {"method": "lemon"}, None


@pytest.mark.parametrize(("name", "start", "options", "call"), list(starts()))
def test_it_is_what_two_calls_give(name, start, options, call):
    size = {**SIZE, "class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 5}
    if name == "a hypernetwork":
        size = {"depth": 2, "embed_dim": 96, "num_heads": 3, "num_classes": 10}
    model = wi.create_model(NAME, start, options=options, **size)
    other = timm.create_model(NAME, **size)
    if call is None:
        wi.project_from(start, other, **options)
    else:
        call(other, start, **options)
    for (key, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected), key
    assert model.training


def test_errors_say_what_to_do():
    with pytest.raises(wi.WeightInitError, match="timm cannot build 'vit_tinny'"):
        wi.create_model("vit_tinny")
    with pytest.raises(wi.WeightInitError, match="dept"):
        wi.create_model(NAME, dept=2)
    with pytest.raises(wi.WeightInitError, match=r"use timm\.create_model"):
        wi.create_model(NAME, pretrained=True)
    with pytest.raises(wi.WeightInitError, match="no_such"):
        wi.create_model(NAME, "no_such", depth=1)


def test_a_folder_is_told_from_an_ancestors(tmp_path):
    make_bundle().save_pretrained(tmp_path / "bundle")
    size = {**SIZE, "class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 5}
    one, other = (wi.create_model(NAME, s, **size) for s in (make_bundle(), tmp_path / "bundle"))
    assert torch.equal(one.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


def test_a_repository_of_templates_is_told_from_an_ancestors(hub, saved):
    hub.add("org/templates", {file.name: file.read_bytes() for file in saved.iterdir()})
    assert kind_of("org/templates") == "templates" and not hub.asked(".safetensors")
    assert kind_of("org/none") == kind_of(vit()) == kind_of(NAME) == "ancestor"


def test_a_name_that_is_almost_a_bundles_is_said():
    with pytest.raises(wi.ProjectionError, match="did you mean 'cifar10-w64'"):
        wi.create_model(NAME, "cifar10-w46", depth=1)
