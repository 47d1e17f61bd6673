"""Hypernetworks as files: whole round trips, and strangers' files refused quickly."""

import json
import time

import pytest
import timm
import torch
from helpers.bundles import files_of
from helpers.hypernet_reference import KINDS, hypernet
from helpers.models import vit
from safetensors.torch import load_file, save_file

import weightinit as wi
from weightinit.errors import BundleError
from weightinit.files.config import BundleConfig
from weightinit.files.locate import names
from weightinit.hypernet.files import HyperNetwork


def rewrite(folder, change=lambda config: None, tensors=lambda found: None):
    """Change a saved bundle's files behind its back, its hash included."""
    import hashlib

    found = load_file(folder / "model.safetensors")
    tensors(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path):
    HyperNetwork.of(hypernet("logah")).save_pretrained(tmp_path / "made")
    return tmp_path / "made"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(kind, dtype, tmp_path):
    net = hypernet(kind)
    bundle = HyperNetwork.of(net, licence="MIT", provenance={"steps": 3}, dtype=dtype)
    bundle.save_pretrained(tmp_path)
    found = HyperNetwork.from_pretrained(tmp_path)
    assert found.hyper_config == net.config and found.config.method == kind
    assert found.config.licence == "MIT" and found.config.provenance == {"steps": 3}
    own = found.module()
    assert not own.training and own.state_dict().keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert own.state_dict()[name].dtype == torch.float32
        assert torch.equal(own.state_dict()[name], value.to(dtype).float())


def test_the_bundle_is_a_copy():
    net = hypernet()
    bundle = HyperNetwork.of(net)
    own = bundle.module()
    with torch.no_grad():
        net.embed.weight.zero_()
    assert bundle.tensors["embed.weight"].any() and own.embed.weight.any()


def test_the_card_names_the_method(folder):
    text = (folder / "README.md").read_text()
    assert "hypernetwork" in text.lower() and "logah" in text.lower()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hid": 2**19}, "hid"),
        ({"layers": 100_000}, "layers"),
        ({"rank": 10**6}, "rank"),
        ({"max_shape": [2**19, 2**19, 2**19]}, "max_shape"),
        ({"kind": "ghn3", "max_shape": [2**20 - 1, 2**20 - 1, 16]}, "max_shape"),
        ({"max_shape": [2**63, 1, 1]}, "max_shape"),
        ({"kind": "pith"}, "method"),
        ({"kind": "mystery"}, "mystery"),
        ({"secret": 1}, "unknown options.*secret"),
        ({"hid": "16"}, "hid"),
        ({"hid": 32}, "shape|lacks"),
        ({"layers": 3}, "lacks tensors"),
        ({"layers": 1}, "unknown ones"),
        ({"max_ck": 4097}, r"decoder\.l2"),
        ({"task_dim": 4}, "lacks tensors"),
    ],
)
def test_hostile_configs_are_refused_quickly(folder, options, words):
    rewrite(folder, lambda config: config["options"].update(options))
    began = time.process_time()
    with pytest.raises(BundleError, match=words):
        HyperNetwork.from_pretrained(folder)
    assert time.process_time() - began < 2


def test_nan_in_a_config(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hid": 16', '"hid": NaN'))
    with pytest.raises(BundleError):
        HyperNetwork.from_pretrained(folder)


def test_nan_in_a_tensor(folder):
    rewrite(folder, tensors=lambda found: found["embed.weight"].fill_(float("nan")))
    with pytest.raises(BundleError, match=r"embed\.weight.*NaN|NaN.*embed\.weight|finite"):
        HyperNetwork.from_pretrained(folder)


def test_other_tensors(folder):
    rewrite(folder, tensors=lambda found: found.update(extra=torch.ones(1)))
    with pytest.raises(BundleError, match=r"unknown ones .*extra"):
        HyperNetwork.from_pretrained(folder)


def test_kinds_of_bundles_are_not_mixed(folder, bundle, tmp_path):
    with pytest.raises(BundleError, match="kind 'hypernetwork', TemplateBundle reads"):
        wi.TemplateBundle.from_pretrained(folder)
    bundle.save_pretrained(tmp_path / "templates")
    with pytest.raises(BundleError, match="kind 'templates', HyperNetwork reads"):
        HyperNetwork.from_pretrained(tmp_path / "templates")
    with pytest.raises(BundleError):
        HyperNetwork(BundleConfig("hypernetwork", "logah", {}, {}, 1, "MIT"), {})


def test_lists_of_templates_hold_no_hypernetworks():
    for name in wi.list_templates():
        assert wi.TemplateBundle.from_pretrained(name)


def test_the_hub_serves_one(hub, tmp_path):
    net = hypernet("logah")
    hub.add("org/logah-vit", files_of(HyperNetwork.of(net), tmp_path / "made"))
    found = wi.HyperNetwork.from_pretrained("org/logah-vit")
    assert "org/logah-vit" in found.source
    one, two = vit(embed_dim=24, num_heads=3), vit(embed_dim=24, num_heads=3)
    wi.init_from_hypernet(one, "org/logah-vit@main")
    wi.init_from_hypernet(two, net)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_hub_takes_one(hub):
    where = HyperNetwork.of(hypernet("ghn3")).push_to_hub("org/ghn3", token="hf_good")
    assert HyperNetwork.from_pretrained(where).hyper_config.kind == "ghn3"


@pytest.mark.parametrize("name", names("hypernetwork"))
def test_the_cards_of_what_ships_run(name):
    card = HyperNetwork.from_pretrained(name).card
    code = card.partition("## Provenance")[0].split("\n")
    sizes = {"img_size": 32, "patch_size": 8, "depth": 6, "embed_dim": 64, "num_heads": 4}
    given = {"ancestor": timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)}
    exec("\n".join(line[4:] for line in code if line.startswith("    ")), given)
    assert all(torch.isfinite(parameter).all() for parameter in given["model"].parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "use"),
    [
        ("logah", {}, 'wi.init_from_hypernet(model, "made")'),
        ("tal", {}, 'wi.init_from_hypernet(model, "made", task=images, ancestor=ancestor)'),
        ("pith", {}, 'wi.project_from(ancestor, model, method=wi.PITH("made"))'),
        ("logah", {"primitives": 18}, "transformers.GPT2LMHeadModel"),
    ],
)
def test_the_card_says_how_it_is_used(kind, changes, use, tmp_path):
    HyperNetwork.of(hypernet(kind, **changes)).save_pretrained(tmp_path / "made")
    card = (tmp_path / "made" / "README.md").read_text()
    assert use in card and "init_from_templates" not in card
    assert "A hypernetwork with an encoder of" in card
