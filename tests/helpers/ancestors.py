"""Tiny ancestors in files, in folders and on the Hub, and what must be the same of all of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import BundleError

ARCHITECTURE = "test_vit"  # timm's own tiny model for tests, with weights on the Hub
NAME, REPO = f"{ARCHITECTURE}.r160_in1k", f"timm/{ARCHITECTURE}.r160_in1k"
ARGUMENTS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "num_heads": 2}
#: The tiny model as a config of timm's describes it.
CONFIG = {
    "architecture": ARCHITECTURE,
    "num_classes": 5,
    "model_args": {**ARGUMENTS, "depth": 3},
    "pretrained_cfg": {"input_size": [1, 8, 8], "num_classes": 5, "classifier": "head"},
}


def write(folder, state, config=None, **metadata):
    """Write a folder as timm does."""
    folder.mkdir(exist_ok=True, parents=True)
    state = {name: value.detach().contiguous().clone() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", **metadata})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def shards(folder, state, config=None):
    """Write a folder with the weights in two shards and an index."""
    write(folder, state, config)
    (folder / "model.safetensors").unlink()
    index = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name].detach().clone() for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_same(ancestor, model, *, sizes=True):
    """Every stored tensor and every part is the model's own."""
    expected = wi.anatomy(model)
    if sizes:
        assert ancestor.anatomy.sizes == expected.sizes
        assert ancestor.anatomy.traits == expected.traits
    parameters = dict(model.named_parameters())
    assert len(ancestor.anatomy.specs) == len(expected.specs)
    for spec in ancestor.anatomy.specs:
        own = expected.spec(spec.key)
        stored = ancestor.stored(spec.name)
        assert torch.equal(stored, parameters[own.name])
        assert stored.dtype == parameters[own.name].dtype and not stored.requires_grad
        assert stored.is_contiguous() and stored.device.type == "cpu"
    for mine, theirs in zip(ancestor.anatomy.blocks, expected.blocks, strict=True):
        assert mine.keys() == theirs.keys()
        for role, piece in mine.items():
            part = ancestor.part(piece)
            spec = theirs[role].spec
            own = expected.split(spec, parameters[spec.name].detach())[role]
            assert torch.equal(part, own.to(part.dtype)) and part.shape == piece.size


def folder_with(change):
    """Return a builder of a folder whose state or config is changed."""

    def build(folder, model):
        state, config = dict(model.state_dict()), json.loads(json.dumps(CONFIG))
        change(state, config)
        write(folder, state, config)

    return build


def published(server, folder, model, name=REPO, config=None, **options):
    """Publish a repository with weights and with what must never be fetched."""
    files = files_of(write(folder, model.state_dict(), config))
    traps = {"pytorch_model.bin": b"\x80\x04 evil", "evil.py": b"raise SystemExit"}
    return server.add(name, files | traps, **options)


def assert_nothing_evil(server):
    assert server.asked("evil") == server.asked(".bin") == 0 and not server.leaked


def hf_config(kind="ViT", **changes):
    import transformers

    sizes = {
        "ViT": {"image_size": 8, "patch_size": 2, "num_labels": 5},
        "Bert": {"vocab_size": 30, "max_position_embeddings": 16},
        "GPT2": {"vocab_size": 30, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 1},
    }[kind]
    common = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    if kind != "GPT2":
        common["intermediate_size"] = 24
    return getattr(transformers, f"{kind}Config")(**{**common, **sizes, **changes})


HF = {
    "ViTForImageClassification": "ViT",
    "ViTModel": "ViT",
    "BertModel": "Bert",
    "BertForMaskedLM": "Bert",
    "BertForPreTraining": "Bert",
    "GPT2LMHeadModel": "GPT2",
    "GPT2Model": "GPT2",
}


def hf_model(name, **changes):
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = getattr(transformers, name)(hf_config(HF[name], **changes)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


def refused(folder, words):
    """Opening a folder raises a BundleError of these words, short and printable."""
    with pytest.raises(BundleError, match=words) as raised:
        Ancestor.open(folder)
    assert len(str(raised.value)) < 2_000 and str(raised.value).isprintable()
