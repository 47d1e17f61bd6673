"""Where parameters are stored: by name, by role, and what is wrong where they are not."""

import pytest
import torch
from helpers.ancestors import CONFIG, assert_same, folder_with, hf_model, refused, write
from safetensors.torch import load_file, save_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import BundleError

#: No door touches the global generator.
pytestmark = pytest.mark.usefixtures("global_generator")


UNSOUND = {
    "missing": (
        folder_with(lambda state, config: state.pop("blocks.1.norm1.weight")),
        "the weights lack blocks.1.norm1.weight.*pass the module",
    ),
    "another shape": (
        folder_with(lambda state, config: state.update({"norm.weight": torch.ones(3)})),
        r"differ in norm.weight \[3\] for \[16\]",
    ),
    "a block too many": (
        folder_with(lambda state, config: config["model_args"].update(depth=2)),
        r"have beside blocks\.2\.",
    ),
    "another model": (
        folder_with(
            lambda state, config: (state.clear(), state.update({c: torch.ones(8) for c in "abc"}))
        ),
        "lack .*have beside a",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_folders(name, model, tmp_path):
    build, words = UNSOUND[name]
    build(tmp_path / "made", model)
    refused(tmp_path / "made", words)


def test_the_names_of_wrappers_in_a_file(model, tmp_path, streamed):
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    ancestor = Ancestor.open(write(tmp_path / "made", state, CONFIG))
    assert_same(ancestor, model)
    assert torch.equal(ancestor.module().head.weight, model.head.weight)


def test_transformers_converts_what_has_old_names(tmp_path, quiet):
    model = hf_model("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in load_file(file).items()
    }
    old |= {
        "cls.seq_relationship.weight": torch.ones(2, 12),
        "cls.seq_relationship.bias": torch.ones(2),
    }
    save_file(old, file, metadata={"format": "pt"})
    ancestor = Ancestor.open(tmp_path)
    assert_same(ancestor, model)
    assert ancestor.source == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("classifier.weight"), "lack classifier.weight"),
        (
            lambda state: state.update({"classifier.weight": torch.ones(3, 12)}),
            "differ in classifier",
        ),
        (
            lambda state: state.update(
                {k.replace("r.1", "r.2"): v.clone() for k, v in state.items() if "layer.1" in k}
            ),
            r"\.2\.",
        ),
    ],
)
def test_transformers_leaves_nothing_random(change, words, tmp_path, quiet):
    hf_model("ViTForImageClassification").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BundleError, match=words):
        Ancestor.open(tmp_path)
