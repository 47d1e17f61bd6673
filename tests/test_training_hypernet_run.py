import json
from dataclasses import replace

import pytest
import torch
from helpers.models import vit
from helpers.training import LOGAH, SMALL, hypernet
from safetensors.torch import load_file, save_file

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import WeightInitError
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.files import HyperNetwork
from weightinit.hypernet.samplers import Sampler, micro
from weightinit.training import hypernet_run
from weightinit.training.config import TrainingConfig
from weightinit.training.data import load_data
from weightinit.training.hypernet_run import train_hypernet, warm_start
from weightinit.training.targets import zero_shot
from weightinit.training.tasks import task_embedding
from weightinit.training.teacher import Network, get_ancestor
from weightinit.training.text import TextData, load_text

ONE = micro(48, 3, image_size=8)
OWN = {
    "ancestor": Network(
        "vit_tiny_patch16_224", micro(32, 2, image_size=8), training=TrainingConfig(5, 32)
    )
}
PITH = replace(LOGAH, config=HyperConfig("pith", **SMALL), **OWN)
TAL = replace(
    LOGAH,
    config=HyperConfig("tal", task_dim=32, **SMALL),
    training=replace(LOGAH.training, frozen=True),
    channels=3,
    stage1="tiny",
    **OWN,
)


@pytest.fixture(scope="module")
def tasks():
    """All ten digits, and 300 of them as another task."""
    digits = load_data("digits")
    part = digits.train.rows(torch.arange(300))
    return [digits, replace(digits, name="part", train=part)]


def run(tmp_path, preset=LOGAH, name="out", **options):
    return train_hypernet(preset, out=tmp_path / name, cache_dir=tmp_path / "cache", **options)


def test_a_hypernetwork_is_trained_saved_and_described(tmp_path):
    bundle = run(tmp_path, command="weightinit train-hypernet ...", seed=3)
    loaded = HyperNetwork.from_pretrained(tmp_path / "out")
    assert all(torch.equal(t, loaded.tensors[n]) for n, t in bundle.tensors.items())
    found = loaded.config.provenance
    assert found["recipe"]["seed"] == 3 and found["preset"] == "tiny" and found["command"]
    assert found["ancestor"] is None and set(found["zero_shot"]) == {"48x3"}
    measured = zero_shot(loaded.module(), ONE, load_data("digits", seed=3))
    assert measured == pytest.approx(found["zero_shot"]["48x3"], abs=0.6)
    assert (tmp_path / "out" / "training" / "history.json").exists()
    assert str(tmp_path) not in json.dumps(found)


def test_the_ancestor_is_trained_once_or_given(tmp_path):
    first = run(tmp_path, PITH).config.provenance["ancestor"]
    assert first["network"]["training"]["steps"] == 5 and 0 <= first["test"] <= 100
    again = run(tmp_path, PITH, "again").config.provenance["ancestor"]
    assert again == first
    model = vit(num_classes=10)
    file = tmp_path / "mine.safetensors"
    save_file(model.state_dict(), file, metadata={
        "format": "pt", "architecture": "vit_tiny_patch16_224", "model_args": json.dumps(
            {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 16,
             "depth": 3, "num_heads": 2, "class_token": False, "global_pool": "avg",
             "fc_norm": False})})  # fmt: skip
    a = run(tmp_path, PITH, "file", ancestor=file)
    b = run(tmp_path, PITH, "module", ancestor=model)
    assert a.config.provenance["ancestor"] == {"source": "mine.safetensors"}
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


def test_tals_two_stages(tmp_path, tasks):
    first = replace(LOGAH, training=replace(LOGAH.training, guide=0.2), channels=3, **OWN)
    stage1 = run(tmp_path, first, "first")
    with pytest.raises(WeightInitError, match=r"goes on from 'tiny': train that one first"):
        run(tmp_path, TAL, "second")
    bundle = run(tmp_path, TAL, "second", data=tasks, start=tmp_path / "first")
    start = bundle.config.provenance["start"]
    assert start["name"] == "first" and all(".TEN." in name for name in start["fresh"])
    name = "gnn.0.attn.to_qkv.weight"
    assert torch.equal(bundle.tensors[name], stage1.tensors[name]), "frozen"
    assert not torch.equal(bundle.tensors["decoder.l2.weight"], stage1.tensors["decoder.l2.weight"])
    found = load_file(tmp_path / "second" / "training" / "tasks.safetensors")
    assert {name: value.shape for name, value in found.items()} == {"digits": (32,), "part": (32,)}
    assert set(bundle.config.provenance["zero_shot"]) == {"48x3 digits", "48x3 part"}
    with pytest.raises(WeightInitError, match="two tasks have one name"):
        run(tmp_path, TAL, "twice", data=["digits", "digits"], start=tmp_path / "first")
    wide = vit(embed_dim=24, in_chans=3, num_classes=10)
    other = run(tmp_path, TAL, "wide", start=tmp_path / "first", ancestor=wide)
    assert other.config.options["task_dim"] == 24


TEXT = replace(
    LOGAH,
    name="text",
    sampler=Sampler("tiny-gpt", {2: (16, 32)}, "sixteenths", {}, family="gpt2"),
    context=16,
    image_size=0,
    watch=({"n_embd": 48, "n_layer": 1, "n_head": 3, "tie_word_embeddings": False},),
)
LANGUAGE = {
    "ancestor": Network(
        "gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 1}, training=TrainingConfig(5, 8)
    )
}


@pytest.fixture
def texts(tmp_path):
    for name, line in (("one", "a text of one kind. "), ("two", "0123456789 ")):
        (tmp_path / f"{name}.txt").write_text(line * 100)
    return [tmp_path / "one.txt", tmp_path / "two.txt"]


def test_a_hypernetwork_of_texts(tmp_path, texts):
    run(tmp_path, TEXT, data=texts[:1])
    loaded = HyperNetwork.from_pretrained(tmp_path / "out")
    found = loaded.config.provenance
    assert found["metric"] == "bits per byte" and found["sampler"] == "tiny-gpt"
    assert found["data"][0]["name"] == "one" and str(tmp_path) not in json.dumps(found)
    data = load_text(texts[0], context=16)
    measured = zero_shot(loaded.module(), TEXT.watch[0], data)
    assert measured == pytest.approx(found["zero_shot"]["48x1"], abs=1e-3)


def test_several_texts_are_tasks(tmp_path, texts):
    preset = replace(TEXT, config=HyperConfig("tal", task_dim=1, **SMALL), **LANGUAGE)
    bundle = run(tmp_path, preset, data=texts)
    assert bundle.config.options["task_dim"] == 16
    rows = load_file(tmp_path / "out" / "training" / "tasks.safetensors")
    assert rows.keys() == {"one", "two"} and not torch.equal(rows["one"], rows["two"])
    found = bundle.config.provenance
    assert set(found["zero_shot"]) == {"48x1 one", "48x1 two"}
    assert set(found["ancestor"]["val"]) == {"one", "two"}
    again = run(tmp_path, preset, data=texts, resume=True)
    assert all(torch.equal(t, again.tensors[n]) for n, t in bundle.tensors.items())


def test_a_given_ancestor_of_texts_is_taken(tmp_path, texts):
    preset = replace(TEXT, config=HyperConfig("tal", task_dim=1, **SMALL), **LANGUAGE)
    own = TextData("all", torch.arange(9), torch.arange(9), 256, 16)
    model = own.build(own.arguments({"n_embd": 32, "n_layer": 1, "n_head": 2}))
    bundle = run(tmp_path, preset, data=texts, ancestor=model)
    assert bundle.config.options["task_dim"] == 32
    assert set(bundle.config.provenance["ancestor"]) == {"source"}
    few = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    with pytest.raises(WeightInitError, match="reads no texts of 256 tokens"):
        run(tmp_path, preset, "few", data=texts, ancestor=own.build(few))
    one, two = (load_text(file, context=16) for file in texts)
    with pytest.raises(WeightInitError, match="load them with one tokenizer"):
        run(tmp_path, preset, "odd", data=[one, replace(two, vocab=99)])


def test_an_ancestor_learns_every_text(tmp_path, texts):
    tasks = [load_text(file, context=16) for file in texts]
    config = TrainingConfig(60, batch_size=16, lr=1e-2, warmup_steps=5)
    network = replace(LANGUAGE["ancestor"], training=config)
    before = torch.get_rng_state()
    found, card = get_ancestor(network, tasks, cache_dir=tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    for task in tasks:
        assert task.score(found) < 0.85 * task.score(network.build(task))
        assert card["val"][task.name] == pytest.approx(task.score(found), abs=1e-4)
    again, other = get_ancestor(network, tasks, cache_dir=tmp_path)
    assert all(map(torch.equal, found.parameters(), again.parameters())) and other == card


def test_a_preset_without_data_asks_for_it(tmp_path):
    with pytest.raises(WeightInitError, match=r"has no data of its own: pass data= \(--data\)"):
        run(tmp_path, replace(TEXT, data=()))


def test_what_is_wrong_is_found_before_the_ancestor_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(hypernet_run, "get_ancestor", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(WeightInitError, match=r"batch_size 5000 \(--batch-size\) cannot be drawn"):
        run(tmp_path, PITH, batch_size=5000)
    with pytest.raises(WeightInitError, match="nowhere"):
        run(tmp_path, TAL, start=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_images_are_no_texts(tmp_path, tasks, texts):
    with pytest.raises(WeightInitError, match="trains no vision transformers"):
        run(tmp_path, TEXT, data=tasks[:1])
    with pytest.raises(WeightInitError, match="trains no GPT-2: use another for texts"):
        run(tmp_path, LOGAH, data=[load_text(texts[0], context=16)])
    assert not (tmp_path / "out").exists()


def test_steps_scale_the_warm_up_and_a_run_resumes(tmp_path):
    bundle = run(tmp_path, steps=8)
    config = bundle.config.provenance["recipe"]
    assert (config["steps"], config["warmup_steps"]) == (8, 4)
    again = run(tmp_path, steps=8, resume=True)
    assert all(torch.equal(t, again.tensors[n]) for n, t in bundle.tensors.items())
    assert again.config.provenance["seconds"] == bundle.config.provenance["seconds"]


def test_a_warm_start_copies_what_fits():
    old, new = hypernet(seed=1), hypernet("tal", task_dim=5)
    found = warm_start(new, "old", old.state_dict())
    assert torch.equal(new.decoder.l2.weight, old.decoder.l2.weight)
    assert len(found["fresh"]) == 8 and found["copied"] == len(old.state_dict())
    with pytest.raises(WeightInitError, match="shares no weights"):
        warm_start(hypernet(), "other", {"alien": torch.zeros(3)})


def test_features_of_tasks_may_come_from_another_network(tmp_path, tasks, monkeypatch):
    """PITH inherits from one published network, and another describes its tasks."""
    named = {"large": vit(embed_dim=32, num_classes=10), "base": vit(embed_dim=16, num_classes=10)}
    real = Ancestor.open
    monkeypatch.setattr(
        hypernet_run.Ancestor, "open", lambda given, **_: real(named.get(given, given))
    )
    preset = replace(
        PITH,
        config=HyperConfig("pith", task_dim=16, **SMALL),
        ancestor=Network("large"),
        features=Network("base"),
    )
    bundle = run(tmp_path, preset, data=tasks)
    assert bundle.config.options["task_dim"] == 16
    rows = load_file(tmp_path / "out" / "training" / "tasks.safetensors")
    assert torch.equal(rows["part"], task_embedding(named["base"], tasks[1]))
    given = run(tmp_path, preset, "given", data=tasks, ancestor=named["large"])
    assert given.config.options["task_dim"] == 32
