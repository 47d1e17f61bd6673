"""The libraries that know an ancestor's weights: timm and transformers."""

import json
import sys

import pytest
import timm
import torch
from helpers.ancestors import (
    ARCHITECTURE,
    CONFIG,
    HF,
    NAME,
    REPO,
    assert_same,
    files_of,
    folder_with,
    hf_model,
    published,
    refused,
    write,
)
from huggingface_hub import constants

from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.models import Library
from weightinit.errors import BundleError, ProjectionError

#: No door touches the global generator.
pytestmark = pytest.mark.usefixtures("global_generator")


UNSOUND = {
    "no architecture": (
        folder_with(lambda state, config: config.pop("architecture")),
        "neither timm's 'architecture' nor transformers' 'model_type'",
    ),
    "unknown architecture": (
        folder_with(lambda state, config: config.update(architecture="vit_of_2031")),
        "'vit_of_2031'.*update timm",
    ),
    "wrong values": (
        folder_with(
            lambda state, config: (
                config.clear(),
                config.update(model_type="vit", hidden_size="wide"),
            )
        ),
        "transformers cannot",
    ),
    "quantized": (
        folder_with(
            lambda state, config: (
                config.clear(),
                config.update(model_type="vit", quantization_config={"quant_method": "gptq"}),
            )
        ),
        "quantized weights.*pass the module",
    ),
    "wrong arguments": (
        folder_with(lambda state, config: config["model_args"].update(depht=2)),
        "timm cannot build",
    ),
    "reads a pickle": (
        folder_with(lambda state, config: config["model_args"].update(checkpoint_path="a.pth")),
        "without .*checkpoint_path",
    ),
    "no arguments": (
        folder_with(lambda state, config: config.update(model_args=[])),
        "must be an object",
    ),
    "depth bomb": (
        folder_with(lambda state, config: config["model_args"].update(depth=10**9)),
        r"has depth 1000000000, for \d+ tensors",
    ),
    "transformers depth bomb": (
        folder_with(
            lambda state, config: config.update(
                architecture=None, model_type="vit", num_hidden_layers=10**9
            )
        ),
        "has num_hidden_layers 1000000000",
    ),
    "a giant": (
        lambda folder, model: write(
            folder, {"a": torch.ones(2)}, {"architecture": "vit_base_patch16_224"}
        ),
        r"it has 86567656 numbers, and the files 2\)",
    ),
    "classes without end": (
        folder_with(lambda state, config: config.update(num_classes=10**7)),
        "it has 170008656 numbers",
    ),
    "transformers' words without end": (
        lambda folder, model: write(
            folder,
            {"a": torch.ones(2)},
            {"model_type": "bert", "vocab_size": 10**8, "num_hidden_layers": 1},
        ),
        "and the files 2",
    ),
    "labels without end": (
        folder_with(
            lambda state, config: config.update(
                architecture=None, model_type="vit", num_labels=2 * 10**7
            )
        ),
        "num_labels 20000000, over 1000000",
    ),
    "architectures of another type": (
        lambda folder, model: write(
            folder,
            {"a": torch.ones(2)},
            {"model_type": "bert", "architectures": 5, "num_hidden_layers": 1},
        ),
        "does not hold the model",
    ),
    "a bundle": (
        lambda folder, model: write(
            folder, {"a": torch.ones(2)}, {"schema": 1, "kind": "templates", "sha256": ""}
        ),
        "pass it to init_from_templates",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_folders(name, model, tmp_path):
    build, words = UNSOUND[name]
    build(tmp_path / "made", model)
    refused(tmp_path / "made", words)


def test_metadata_says_what_a_bare_file_is(model, tmp_path, streamed):
    arguments = json.dumps({**CONFIG["model_args"], "num_classes": 5})
    metadata = {"architecture": ARCHITECTURE, "model_args": arguments}
    file = write(tmp_path / "made", model.state_dict(), **metadata) / "model.safetensors"
    ancestor = Ancestor.open(file)
    assert_same(ancestor, model)
    assert torch.equal(ancestor.module().head.weight, model.head.weight)
    metadata["architecture"] = "of_another_time"
    file = write(tmp_path / "made", model.state_dict(), **metadata) / "model.safetensors"
    assert Ancestor.open(file, heads=2).anatomy.depth == 3


def test_timm_saves_what_is_opened(model, tmp_path, streamed):
    folder, arguments = tmp_path / "made", CONFIG["model_args"]
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    assert_same(Ancestor.open(tmp_path / "made"), model)


def test_weights_in_another_dialect_go_through_timm(hub, vit_tensors, tmp_path):
    """A file of another image size, whose positions timm resamples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        larger = timm.create_model(NAME, img_size=224)
    published(hub, tmp_path / "made", larger)
    with torch.random.fork_rng(devices=[]):
        expected = timm.create_model(NAME, pretrained=True)
    ancestor = Ancestor.open(NAME)
    assert REPO in ancestor.source
    assert_same(ancestor, expected)
    assert ancestor.module() is not ancestor.module()
    assert hub.asked(".bin") == 0


def test_no_generator_of_a_gpu_is_reset(hub, tmp_path, monkeypatch):
    """Converting draws twice from one seed, which must not reach training that goes on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        larger = timm.create_model(NAME, img_size=224)
    published(hub, tmp_path / "made", larger)
    for name in ("manual_seed", "cuda.manual_seed_all", "cuda.manual_seed"):
        monkeypatch.setattr(f"torch.{name}", None)
    assert Ancestor.open(NAME).anatomy.depth == len(larger.blocks)


def test_files_may_hold_more_than_the_model(model, tmp_path, streamed):
    state = {**model.state_dict(), "mask_token": torch.ones(1, 1, 16), "loss.scale": torch.ones(2)}
    ancestor = Ancestor.open(write(tmp_path / "made", state, CONFIG))
    assert_same(ancestor, model)
    assert [spec.name for spec in ancestor.anatomy.unexplained] == ["loss.scale", "mask_token"]


def test_what_timm_would_leave_random(hub, tmp_path):
    """timm loads these with strict=False: without a final norm, which is sound, or a stage."""
    name = "convnextv2_atto.fcmae"
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    hub.add(f"timm/{name}", files_of(write(tmp_path / "made", state)))
    ancestor = Ancestor.open(name)
    assert torch.equal(ancestor.stored("stem.0.weight"), model.stem[0].weight)
    assert ancestor.stored("head.norm.weight").min() == 1
    state = {k: v for k, v in state.items() if not k.startswith("stages.3.blocks.0")}
    hub.add(f"timm/{name}", files_of(write(tmp_path / "made", state)))
    with pytest.raises(BundleError, match=r"the weights lack .*stages\.3\.blocks\.0"):
        Ancestor.open(name)


@pytest.mark.parametrize("name", HF)
def test_models_of_transformers(name, hub, tmp_path, quiet, monkeypatch):
    model = hf_model(name)
    model.save_pretrained(tmp_path / "made")
    sha = hub.add("org/hf", files_of(tmp_path / "made") | {"pytorch_model.bin": b"\x80\x04 evil"})
    with monkeypatch.context() as patch:
        patch.setattr(Library, "loaded", None)
        ancestor = Ancestor.open("org/hf")
        assert ancestor.source == f"org/hf@{sha}"
        assert_same(ancestor, model)
    copy = ancestor.module()
    assert type(copy) is type(model) and not copy.training
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same(Ancestor.open("org/hf"), model)
    assert hub.asked(".bin") == 0


def test_a_base_model_whose_class_is_not_known(tmp_path, quiet):
    model = hf_model("ViTModel")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names in (["MyOwnViT"], ["BertModel"], ["Trainer"], None):
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": names}))
        assert_same(Ancestor.open(tmp_path), model)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_fetches_nothing(key, tmp_path, quiet):
    """transformers would load such a kernel, which is code, from the Hub."""
    model = hf_model("ViTModel")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    evil = {key: "evil/kernel", "auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config | evil))
    ancestor = Ancestor.open(tmp_path)
    assert_same(ancestor, model)
    assert ancestor.module().config._attn_implementation in ("sdpa", "eager")


def test_other_models_of_transformers_are_for_the_user_to_load(tmp_path):
    """Their constructors may load further weights."""
    config = {"model_type": "detr", "backbone": "resnet50", "use_pretrained_backbone": True}
    write(tmp_path, {"a": torch.ones(2)}, config)
    with pytest.raises(ProjectionError, match=r"model_type 'detr'.*with transformers and pass"):
        Ancestor.open(tmp_path)


def test_without_transformers(tmp_path, monkeypatch, quiet):
    hf_model("ViTModel").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ProjectionError, match="pip install transformers"):
        Ancestor.open(tmp_path)
