import copy
import json
from dataclasses import replace

import pytest
import timm
import torch
from helpers.models import state_hash, vit
from helpers.training import SIZE, TINY
from safetensors.torch import save_file

import weightinit as wi
from weightinit.errors import WeightInitError
from weightinit.training import teacher, templates
from weightinit.training.data import load_data
from weightinit.training.fleet import plain_attention
from weightinit.training.teacher import Network, as_published, get_ancestor
from weightinit.training.templates import build_auxiliary, train_templates


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def run(tmp_path, name="out", preset=TINY, **options):
    return train_templates(preset, out=tmp_path / name, cache_dir=tmp_path / "cache", **options)


def test_a_bundle_is_trained_saved_and_described(tmp_path, digits):
    bundle = run(tmp_path, command="weightinit train-templates ...")
    loaded = wi.TemplateBundle.from_pretrained(tmp_path / "out")
    assert loaded.config.provenance == bundle.config.provenance
    assert all(torch.equal(t, loaded.tensors[n]) for n, t in bundle.tensors.items())
    assert bundle.config.depth == 3 and bundle.config.sizes["d"] == 16
    found = bundle.config.provenance
    assert set(found["auxiliary"]["val"]) == {"avg", "token", "depth 2", "depth 4"}
    assert found["versions"]["timm"] == timm.__version__ and found["command"]
    assert found["data"]["images"]["test"] == len(digits.test)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"README.md", "training"}


def test_the_shipped_numbers_are_those_of_the_bundle(tmp_path, digits):
    """A target of the auxiliary size, filled from the saved bundle, scores what is recorded."""
    scores = run(tmp_path).config.provenance["auxiliary"]["val"]
    for pool in ("avg", "token"):
        model = timm.create_model(
            "vit_tiny_patch16_224", **SIZE, depth=3, in_chans=1, num_classes=10,
            class_token=True, global_pool=pool, fc_norm=False,
        )  # fmt: skip
        wi.init_from_templates(model, tmp_path / "out")
        assert digits.score(model) == pytest.approx(scores[pool], abs=0.6)


def test_the_ancestor_is_trained_once(tmp_path, digits, monkeypatch):
    first, card = get_ancestor(TINY.ancestor, [digits], cache_dir=tmp_path)
    monkeypatch.setattr(teacher, "train", lambda *_, **__: pytest.fail("trained again"))
    again, other = get_ancestor(TINY.ancestor, [digits], cache_dir=tmp_path)
    assert card == other and 0 < card["val"] < 100
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        get_ancestor(TINY.ancestor, [digits], cache_dir=tmp_path, seed=1)


def test_a_killed_distillation_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole = run(tmp_path, "whole")
    real = templates.train

    def short(module, data, config, **options):
        return real(module, data, config, **{**options, "save_every": 3})

    def killed(module, data, config, **options):
        steps = [None] * 5
        module.register_forward_pre_hook(lambda *_: steps.pop())
        return short(module, data, config, **options)

    monkeypatch.setattr(templates, "train", killed)
    with pytest.raises(IndexError):
        run(tmp_path, "cut")
    monkeypatch.setattr(templates, "train", short)
    resumed = run(tmp_path, "cut", resume=True)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


@pytest.mark.parametrize("method", ["tleg", "share"])
def test_closed_form_methods_make_bundles_without_scalers(tmp_path, method):
    bundle = run(tmp_path, method=method, steps=2)
    assert bundle.config.method == method
    assert not any(name.startswith("scalers.") for name in bundle.tensors)


def test_a_mixed_model_draws_in_training_alone(digits):
    module = build_auxiliary(TINY, digits, "wave", 0)
    images = torch.randn(2, 1, 8, 8)
    assert module.depth == 3 and len(module.model.blocks) == 4
    module.eval()
    expected = module(images)
    assert all(torch.equal(module(images), expected) for _ in range(5))
    module.train()
    torch.manual_seed(0)
    seen = {tuple(module(images).flatten().tolist()) for _ in range(40)}
    assert len(seen) == 3  # depths
    assert len(module.model.blocks) == 4 and module.model.global_pool == "avg"
    module.eval()
    assert torch.equal(module(images), expected)


def test_few_tokens_attend_in_plain_matrix_products_on_a_cpu(digits):
    module = build_auxiliary(TINY, digits, "wave", 0).eval()
    images = torch.randn(2, 1, 8, 8)
    expected = module(images)
    fused = [m for m in module.modules() if hasattr(m, "fused_attn")]
    assert fused and not any(m.fused_attn for m in fused)
    for attention in fused:
        attention.fused_attn = True
    torch.testing.assert_close(module(images), expected)


def test_every_pooling_is_trained_at_each_step(digits):
    module = build_auxiliary(replace(TINY, depths=()), digits, "wave", 0)
    images = torch.randn(2, 1, 8, 8)
    both = module(images)
    module.eval()
    for index, pool in enumerate(TINY.pools):
        module.model.global_pool = pool
        torch.testing.assert_close(both[:, index], module(images))
    assert not torch.equal(both[:, 0], both[:, 1])


def test_a_mixed_model_of_one_depth_is_the_constrained_model(digits):
    plain = replace(TINY, pools=("avg",), depths=())
    module = build_auxiliary(plain, digits, "wave", 0)
    assert not module.model.has_class_token
    images = torch.randn(2, 1, 8, 8)
    whole = module.to_bundle()
    kinds = module.config.kinds
    twin = wi.constrain(
        plain.auxiliary_at(3).build(digits, 0),
        module.config,
        templates={k: whole.tensors[f"templates.{k}"] for k in kinds},
        scalers={k: whole.tensors[f"scalers.{k}"] for k in kinds},
    )
    plain_attention(twin)
    torch.testing.assert_close(module(images)[:, 0], twin(images), rtol=0, atol=0)
    module.eval()
    torch.testing.assert_close(copy.deepcopy(module)(images), twin(images), rtol=0, atol=0)


def test_a_pretrained_ancestor_brings_its_normalisation(digits):
    published = timm.create_model("vit_tiny_patch16_224.augreg_in21k", depth=1, num_classes=10)
    model, (data,) = as_published(published, [digits.in_shape(8)])
    assert data.mean == (0.5, 0.5, 0.5) and model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_scalers_may_start_at_eq_b1(tmp_path, digits):
    module = build_auxiliary(TINY, digits, "wave", 0, "linear")
    scalers = module.scaler_values()["attn.proj.weight"]
    assert torch.allclose(scalers.diff(dim=0)[0], scalers.diff(dim=0)[1], atol=1e-5)
    found = run(tmp_path, scalers="linear", steps=2).config.provenance["auxiliary"]
    assert found["scalers"] == "linear" and found["recipe"]["scaler_lr"] == 0.5
    found = run(tmp_path, "own", scalers="linear", scaler_lr=0.1, steps=2).config.provenance
    assert found["auxiliary"]["recipe"]["scaler_lr"] == 0.1
    with pytest.raises(WeightInitError, match="with 'wave' 'linear'"):
        build_auxiliary(TINY, digits, "weit", 0, "linear")


def test_a_given_ancestor_is_learned_from(tmp_path, digits):
    own = vit(embed_dim=16, num_classes=10)
    before = state_hash(own)
    bundle = run(tmp_path, ancestor=own, steps=2)
    card = bundle.config.provenance["ancestor"]
    assert card["source"] == "a VisionTransformer"
    assert card["val"] == pytest.approx(digits.score(own), abs=0.01)
    assert state_hash(own) == before
    assert bundle.config.provenance["auxiliary"]["recipe"]["loss"] == "soft+ce"
    file = tmp_path / "mine.safetensors"
    save_file(own.state_dict(), file, metadata={
        "format": "pt", "architecture": "vit_tiny_patch16_224", "model_args": json.dumps(
            {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 16,
             "depth": 3, "num_heads": 2, "class_token": False, "global_pool": "avg",
             "fc_norm": False})})  # fmt: skip
    again = run(tmp_path, "again", ancestor=file, steps=2)
    assert again.config.provenance["ancestor"]["source"] == "mine.safetensors"
    assert all(torch.equal(t, again.tensors[n]) for n, t in bundle.tensors.items())
    weit = run(tmp_path, "weit", method="weit", ancestor=own, steps=2).config
    assert weit.provenance["auxiliary"]["recipe"]["loss"] == "soft+ce" and weit.method == "weit"


@pytest.mark.parametrize(
    ("ancestor", "message"),
    [
        (vit(embed_dim=16, num_classes=7), "has 7 classes, and digits 10: fine-tune"),
        (vit(embed_dim=16, num_classes=10, in_chans=3), "does not run on images of"),
        ("vit_tiny_patch16_224.no_such_tag", "no pretrained weights for"),
        ("vit_base_patch32_plus_256", "no pretrained weights for"),
        ("nothing/here/at/all", "there is no ancestor"),
    ],
)
def test_an_ancestor_of_other_data_is_refused(tmp_path, ancestor, message):
    with pytest.raises(WeightInitError, match=message):
        run(tmp_path, ancestor=ancestor)
    assert not (tmp_path / "out").exists()


def test_weit_trains_smaller_networks_inside(tmp_path, digits):
    preset = replace(TINY, method="weit", ancestor=None, depths=(1, 2), pools=("avg",))
    bundle = run(tmp_path, preset=preset)
    assert bundle.config.method == "weit"
    assert bundle.config.traits["trained_depths"] == [1, 2, 3]
    assert bundle.config.traits["trained_widths"] == [0.5, 1.0]
    found = bundle.config.provenance
    assert found["ancestor"] is None and found["auxiliary"]["recipe"]["loss"] == "ce"
    scores = found["auxiliary"]["val"]
    assert set(scores) == {"16x3", "16x1", "16x2", "8x3", "8x1", "8x2"}
    # a target of a trained size is the network inside
    for name, width, depth, heads in (("16x3", 16, 3, 2), ("8x2", 8, 2, 1)):
        model = timm.create_model(
            "vit_tiny_patch16_224", **SIZE | {"embed_dim": width, "num_heads": heads},
            depth=depth, in_chans=1, num_classes=10, class_token=False, global_pool="avg",
            fc_norm=False,
        )  # fmt: skip
        wi.init_from_templates(model, tmp_path / "out")
        assert digits.score(model) == pytest.approx(scores[name], abs=0.6)


def test_a_killed_weit_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    preset = replace(TINY, method="weit", ancestor=None, depths=(1, 2), pools=("avg",))
    whole = run(tmp_path, "whole", preset)
    real = templates.train

    def killed(module, data, config, **options):
        steps = [None] * 5
        module.register_forward_pre_hook(lambda *_: steps.pop())
        return real(module, data, config, **options)

    monkeypatch.setattr(templates, "train", killed)
    with pytest.raises(IndexError):
        run(tmp_path, "cut", preset, checkpoint_every=3)
    monkeypatch.setattr(templates, "train", real)
    resumed = run(tmp_path, "cut", preset, checkpoint_every=3, resume=True)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


def test_bad_input_is_refused(tmp_path, digits, monkeypatch):
    with pytest.raises(WeightInitError, match="method 'ligo' trains no templates"):
        build_auxiliary(TINY, digits, "ligo", 0)
    monkeypatch.setattr(templates, "get_ancestor", lambda *_, **__: pytest.fail("trained"))
    for options, message in (
        ({"method": "ligo"}, "trains no templates"),
        ({"batch_size": 5000}, r"batch_size 5000 \(--batch-size\) cannot be drawn from the 1259"),
        ({"resume": True, "force": True}, "pass one of them"),
    ):
        with pytest.raises(WeightInitError, match=message):
            run(tmp_path, **options)
    paper = replace(TINY, training=replace(TINY.training, augment="paper"))
    with pytest.raises(WeightInitError, match="use augment 'light'"):
        run(tmp_path, preset=paper)
    large = replace(TINY, auxiliary=Network("vit_tiny_patch16_224", {**SIZE, "img_size": 16}))
    with pytest.raises(WeightInitError, match=r"images of \(8, 8\) pixels"):
        run(tmp_path, preset=large)
