"""Checkpoints of the published code become bundles: every setting, layout and format of it."""

import argparse
import json
import os
import time
import warnings
from dataclasses import replace

import joblib
import pytest
import torch
from safetensors import safe_open

from weightinit.cli import main
from weightinit.errors import BundleError
from weightinit.hypernet import convert as convert_module
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.convert import convert
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.network import GraphHyperNetwork

SMALL = {"hid": 32, "layers": 2, "heads": 4, "num_classes": 10, "faithful": True}
LOW_RANK = {**SMALL, "rank": 8, "max_ck": 512, "max_shape": (256, 256, 16)}
PITH = {**LOW_RANK, "alignment": "first"}
CONFIGS = {
    "ghn3": HyperConfig("ghn3", **SMALL, max_shape=(32, 24, 11)),
    "logah": HyperConfig("logah", **LOW_RANK),
    "tal": HyperConfig("tal", **LOW_RANK, task_dim=48, dead_layer=False),
    "pith": HyperConfig("pith", **PITH, expansion="original"),
    "pith_plain": HyperConfig("pith", **PITH),
    "pith_both": HyperConfig("pith", **PITH, expansion="both"),
    "pith_shared": HyperConfig("pith", **PITH, pathway="shared"),
    "pith_tasks": HyperConfig("pith", **PITH, expansion="original", task_dim=12),
    "gpt": HyperConfig("logah", **LOW_RANK, language="gpt", dead_layer=False),
    "llm": HyperConfig("logah", **LOW_RANK, primitives=18, language="llm"),
}


def published(state, config):
    """The state dict as the published code saves it: the last layers of decoders twice."""
    aliases = {}
    for name, tensor in state.items():
        decoder, _, rest = name.partition(".l2")
        if not rest or config.kind == "ghn3":
            continue
        step, _, part = rest.partition(".")
        if step in ("", "_step1", "_step2", "_step3"):
            index = 1 if not step else 2 * int(step[-1]) - 1
            aliases[f"{decoder}.seq.{index}.{part}"] = tensor
    return {**state, **aliases}


def stated(config):
    """The config that the published trainers save beside the weights."""
    return {
        "max_shape": (*config.max_shape, config.max_shape[2]), "num_classes": config.num_classes,
        "hid": config.hid, "layers": config.layers, "heads": config.heads, "weight_norm": True,
        "ve": True, "layernorm": True, "hypernet": "gatedgnn", "decoder": "conv",
        "is_ghn2": False, "lora_r": config.rank, "max_ck_lora": config.max_ck,
        "use_1d_decoder": False,
    }  # fmt: skip


def network(config):
    torch.manual_seed(0)
    return GraphHyperNetwork(config)


def same_tensors(wanted, folder):
    found = HyperNetwork.from_pretrained(folder).module().state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_checkpoint_keeps_its_config_and_tensors(name, tmp_path):
    config = CONFIGS[name]
    state = network(config).state_dict()
    checkpoint = {
        "state_dict": {f"module.{key}": value for key, value in published(state, config).items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "epoch": 7,
        "args": argparse.Namespace(lr=1e-3),
        "config": stated(config),
    }
    torch.save(checkpoint, tmp_path / "old.pt")
    done = convert(tmp_path / "old.pt", tmp_path / "new", kind=config.kind, licence="MIT")
    assert done.config == config and done.assumed == ("softmax",)
    assert done.ignored == ("optimizer", "epoch", "args")
    assert all(".seq." in key for key in done.dropped)
    assert len(done.dropped) == len(published(state, config)) - len(state)
    assert done.parameters == sum(tensor.numel() for tensor in state.values())
    same_tensors(state, tmp_path / "new")
    bundle = HyperNetwork.from_pretrained(tmp_path / "new")
    assert bundle.config.licence == "MIT"
    assert bundle.config.provenance["converted_from"] == "old.pt"
    assert len(bundle.config.provenance["sha256"]) == 64


@pytest.mark.parametrize("kind", ["ghn3", "logah", "tal", "pith"])
@pytest.mark.parametrize("form", ["zip", "older", "joblib"])
def test_the_published_codes_own_weights(golden, kind, form, tmp_path):
    """State dicts of the released classes, written as their authors write them."""
    with safe_open(golden / f"{kind}_a.safetensors", "pt") as file:
        facts = {name: json.loads(file.metadata()[name]) for name in ("hyper_config", "alias_keys")}
        state = {
            key.removeprefix("hyper/"): file.get_tensor(key)
            for key in file.keys()
            if key.startswith("hyper/")
        }
    described = facts["hyper_config"]
    saved = {**state, **{old: state[new] for old, new in facts["alias_keys"].items()}}
    if form == "joblib":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            joblib.dump({"state_dict": saved, "config": described}, tmp_path / "old.pt")
    else:
        value = {"state_dict": saved, "config": described, "args": argparse.Namespace(seed=1)}
        torch.save(value, tmp_path / "old.pt", _use_new_zipfile_serialization=form == "zip")
    done = convert(tmp_path / "old.pt", tmp_path / "new")
    config = done.config
    for ours in ("hid", "layers", "heads", "layernorm", "num_classes"):
        assert getattr(config, ours) == described[ours]
    assert config.kind == kind and config.max_shape == tuple(described["max_shape"][:3])
    assert config.rank == described.get("lora_r", 0)
    assert config.max_ck == described.get("max_ck_lora", config.max_ck)
    assert config.task_dim == described.get("task_embedding_dim", 0)
    assert config.expansion == ("original" if kind == "pith" else "none")
    assert config.dead_layer == (kind != "tal")
    assert set(done.dropped) == set(facts["alias_keys"])
    same_tensors(state, tmp_path / "new")


def test_the_public_layout_of_ghn3(tmp_path, monkeypatch):
    """A joblib dump of a bare state dict, tables at the top level, convolutions of 1x1."""
    config = CONFIGS["ghn3"]
    state = network(config).state_dict()
    old = {
        name.removeprefix("gnn.0.") if "_embed_" in name or "input_dist" in name else name: value
        for name, value in state.items()
    }
    for name in ("decoder.conv.0.weight", "decoder.conv.2.weight"):
        old[name] = old[name][..., None, None]
    assert "centrality_embed_in.weight" in old
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joblib.dump(old, tmp_path / "ghn3tm8.pt")
    done = convert(tmp_path / "ghn3tm8.pt", tmp_path / "new")
    assert done.config == config and done.assumed == ("softmax",)
    assert "not stated in the file, assumed: softmax False" in str(done)
    assert convert(tmp_path / "ghn3tm8.pt", tmp_path / "new", softmax=True).assumed == ()
    assert sorted(done.moved.values()) == [
        "gnn.0.centrality_embed_in.weight",
        "gnn.0.centrality_embed_out.weight",
        "gnn.0.input_dist_embed.weight",
    ]
    same_tensors(state, tmp_path / "new")


def test_what_a_bare_low_rank_file_does_not_say_is_assumed_or_given(tmp_path):
    config = replace(CONFIGS["logah"], num_classes=1000, max_shape=(2048, 2048, 16))
    torch.save(network(config).state_dict(), tmp_path / "old.pt")
    done = convert(tmp_path / "old.pt", tmp_path / "new")
    assert done.config == config and set(done.assumed) == {"max_shape", "num_classes", "softmax"}
    assert "assumed: num_classes 1000, max_shape (2048, 2048, 16), softmax False" in str(done)
    done = convert(tmp_path / "old.pt", tmp_path / "new", max_shape=512, num_classes=100)
    assert done.config == replace(config, max_shape=(512, 512, 16), num_classes=100)
    assert done.assumed == ("softmax",) and not done.config.softmax
    assert convert(tmp_path / "old.pt", tmp_path / "new", softmax=True).config.softmax
    released = replace(CONFIGS["pith"], num_classes=1000)
    torch.save(network(released).state_dict(), tmp_path / "old.pt")
    done = convert(tmp_path / "old.pt", tmp_path / "new")
    assert done.config.max_shape == (4096, 4096, 16)


def test_aliases_alone_are_renamed(tmp_path):
    """Of a file that keeps shared tensors once, whichever name comes first."""
    for name in ("logah", "pith"):
        config = CONFIGS[name]
        state = network(config).state_dict()
        whole = published(state, config)
        old = {key: value for key, value in whole.items() if ".l2" not in key}
        torch.save({"state_dict": old, "config": stated(config)}, tmp_path / "old.pt")
        done = convert(tmp_path / "old.pt", tmp_path / "new")
        assert done.config == config and not done.dropped
        same_tensors(state, tmp_path / "new")


def test_another_dict_of_the_file_can_be_named(tmp_path):
    config = CONFIGS["logah"]
    first, second = network(config).state_dict(), GraphHyperNetwork(config).state_dict()
    value = {"state_dict": first, "ema_state_dict": second, "config": stated(config)}
    torch.save(value, tmp_path / "old.pt")
    assert convert(tmp_path / "old.pt", tmp_path / "new").ignored == ("ema_state_dict",)
    same_tensors(first, tmp_path / "new")
    convert(tmp_path / "old.pt", tmp_path / "new", key="ema_state_dict")
    same_tensors(second, tmp_path / "new")
    with pytest.raises(BundleError, match=r"'ema_state_dict', 'config'"):
        convert(tmp_path / "old.pt", tmp_path / "new", key="ema")


def test_half_precision_is_widened(tmp_path):
    state = network(CONFIGS["ghn3"]).half().state_dict()
    torch.save(state, tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "new")
    same_tensors({name: value.float() for name, value in state.items()}, tmp_path / "new")


def changed(**changes):
    def change(value):
        state = value["state_dict"]
        for name, tensor in changes.items():
            state.pop(name) if tensor is None else state.update({name: tensor})

    return change


BAD = {
    "ghn2": ("ghn3", changed(**{"gnn.gru.weight_ih": torch.ones(2, 2)}), "GHN-2"),
    "missing": ("logah", changed(**{"gnn.1.ln1.bias": None}), r"missing: gnn.1.ln1.bias"),
    "unknown": ("logah", changed(**{"extra.weight": torch.ones(2)}), r"unknown: extra.weight"),
    "shape": ("logah", changed(**{"ln.bias": torch.ones(2)}), r"ln.bias \[2\] for \[32\]"),
    "no_embed": ("logah", changed(**{"embed.weight": None}), "embed.weight is missing"),
    "no_heads": ("logah", changed(**{"gnn.0.attn.proj_e.2.weight": None}), "proj_e.2.weight is"),
    "rank": ("logah", changed(**{"decoder.l2.weight": torch.ones(3)}), "l2.weight is of shape"),
    "alias": ("logah", changed(**{"decoder.seq.1.bias": torch.ones(512)}), "differ"),
    "integers": ("logah", changed(**{"ln.bias": torch.ones(32).int()}), "floating point"),
    "nan": ("logah", changed(**{"ln.bias": torch.full((32,), torch.nan)}), "NaN"),
    "no_tensor": ("logah", changed(**{"ln.bias": 3}), "is no tensor"),
    "name": ("logah", changed(**{"../ln": torch.ones(2)}), "not allowed"),
    "no_dict": ("logah", lambda value: value.update(state_dict=[1]), "holds no dict"),
    "classes": ("logah", lambda value: value["config"].update(num_classes=8), "embed_channel"),
    "kernel": ("logah", lambda value: value["config"].update(max_shape=(9, 9, 11)), "embed_sp"),
    "sizes": ("logah", lambda value: value["config"].update(max_shape=(9, 9)), "has 2 sizes"),
    "nonsense": ("logah", lambda value: value["config"].update(num_classes="x"), "num_classes is"),
    "huge": ("logah", lambda value: value["config"].update(num_classes=2**62), "num_classes is"),
    "vectors": ("logah", lambda value: value["config"].update(use_1d_decoder=True), "use_1d_dec"),
    "norm": ("logah", lambda value: value["config"].update(weight_norm=False), "weight_norm"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_and_nothing_written(name, tmp_path):
    kind, change, words = BAD[name]
    config = CONFIGS[kind]
    value = {"state_dict": network(config).state_dict(), "config": stated(config)}
    change(value)
    torch.save(value, tmp_path / "old.pt")
    with pytest.raises(BundleError, match=words):
        convert(tmp_path / "old.pt", tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["old.pt"]


def test_another_kind_or_size_than_asked_for_is_refused(tmp_path):
    torch.save(network(CONFIGS["ghn3"]).state_dict(), tmp_path / "old.pt")
    for options, words in (
        ({"kind": "logah"}, "of kind 'ghn3', not 'logah'"),
        ({"num_classes": 7}, "num_classes 7 was asked for, and the weights say 10"),
        ({"max_shape": 64}, "max_shape 64 was asked for"),
    ):
        with pytest.raises(BundleError, match=words):
            convert(tmp_path / "old.pt", tmp_path / "new", **options)
    torch.save([torch.ones(3)], tmp_path / "old.pt")
    with pytest.raises(BundleError, match="holds a list"):
        convert(tmp_path / "old.pt", tmp_path / "new")


def test_tensors_that_share_their_numbers_are_refused(tmp_path):
    """A file of little could describe a network of very much."""
    config = CONFIGS["logah"]
    state = network(config).state_dict()
    numbers = torch.ones(max(tensor.numel() for tensor in state.values()))
    state = {name: numbers[: value.numel()].view(value.shape) for name, value in state.items()}
    torch.save({"state_dict": state, "config": stated(config)}, tmp_path / "old.pt")
    with pytest.raises(BundleError, match="share their numbers"):
        convert(tmp_path / "old.pt", tmp_path / "new")


def test_a_state_dict_of_too_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "MAX_TENSORS", 9)
    torch.save(network(CONFIGS["logah"]).state_dict(), tmp_path / "old.pt")
    with pytest.raises(BundleError, match="allowed are 9"):
        convert(tmp_path / "old.pt", tmp_path / "new")


def test_a_file_of_many_layers_is_refused_soon(tmp_path):
    """9,000 names in a small file: no network of as many layers is built."""
    state = network(CONFIGS["logah"]).state_dict()
    one = torch.ones(1)
    state |= {f"gnn.{i}.ln1.weight": one.clone() for i in range(2, 4000)}
    torch.save({"state_dict": state, "config": stated(CONFIGS["logah"])}, tmp_path / "old.pt")
    began = time.process_time()
    with pytest.raises(BundleError, match="layers is 4000: use a whole number of 1 to 256"):
        convert(tmp_path / "old.pt", tmp_path / "new")
    assert time.process_time() - began < 10


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = CONFIGS["logah"]
    torch.save(published(network(config).state_dict(), config), "old.pt")
    arguments = ["convert", "old.pt", "new", "--max-shape", "256", "--num-classes", "10"]
    assert main([*arguments, "--kind", "logah", "--licence", "MIT", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert HyperConfig.from_dict(printed["config"]) == config and printed["assumed"] == ["softmax"]
    assert "decoder.seq.1.bias" in printed["dropped"] and printed["folder"] == "new"
    assert main([*arguments, "--softmax"]) == 0
    out = capsys.readouterr().out
    assert "the same tensors again: decoder.seq.1.bias" in out and "assumed" not in out
    assert HyperNetwork.from_pretrained("new").hyper_config.softmax
    torch.save({"state_dict": {"embed.weight": Evil()}}, "evil.pt")
    assert main(["convert", "evil.pt", "bad"]) == 2
    assert "'posix.system', which is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists() and not (tmp_path / "PWNED").exists()
