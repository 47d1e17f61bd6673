"""What is predicted, as a model stores it: every parameter, by one rule or another."""

import pytest
import timm
import torch
from helpers.hypernet_reference import KINDS, hypernet, task_of, torchvision_vit
from helpers.models import vit
from torch.func import functional_call

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.predict import Prediction


def predict(net, model, **options):
    if net.config.kind == "pith":
        options.setdefault("ancestor", Ancestor.open(vit(embed_dim=32, in_chans=3)))
    return Prediction(net, wi.anatomy(model), task=task_of(net), **options)


TARGETS = {
    "vit": lambda: vit(in_chans=3),
    "tokens": lambda: vit(in_chans=3, class_token=True, reg_tokens=2, global_pool="token"),
    "layer scale": lambda: vit(in_chans=3, init_values=0.1, qkv_bias=False),
    "torchvision": lambda: torchvision_vit(2, 32, size=32),
    "transformers": lambda: _transformers_vit(),
    "meta": lambda: vit(in_chans=3).to("meta"),
}


def _transformers_vit():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**sizes, intermediate_size=32, image_size=8, patch_size=2)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_recipes_write_what_is_predicted(kind, name):
    """Deferred and at once, both ways of reading a prediction give the same, for any library."""
    net, model = hypernet(kind), TARGETS[name]()
    with torch.no_grad():
        found = predict(net, model)
    values, recipes = (
        found.parameters(),
        {r.spec.name: r for r in found.plan().recipes(found.target)},
    )
    assert values.keys() == recipes.keys() == dict(model.named_parameters()).keys()
    for key, recipe in recipes.items():
        for dtype in (torch.float32, torch.float64):
            out = torch.full(recipe.spec.shape, float("nan"), dtype=dtype)
            recipe.fill(out)
            torch.testing.assert_close(out, values[key].to(dtype), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_deterministic(kind):
    net = hypernet(kind)
    before = torch.get_rng_state()
    first, second = (
        predict(net, vit(in_chans=3, class_token=True, global_pool="token")).parameters()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())


def test_the_random_row_of_the_published_code_has_a_seed():
    net, model = hypernet(), torchvision_vit(1, 32, size=32)
    name = "encoder.pos_embedding"
    one, same, other = (
        predict(net, model, faithful=True, seed=seed).parameters()[name] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one[:, 0], other[:, 0]) and torch.equal(one[:, 1:], other[:, 1:])
    assert one[:, 0].std().item() == pytest.approx(0.02, rel=0.5)
    assert not predict(net, model).parameters()[name][:, 0].any()


def test_it_can_be_differentiated_through_the_target():
    net, model = hypernet("tal"), vit(in_chans=3)
    weights = predict(net, model).parameters()
    out = functional_call(model, weights, (torch.randn(2, 3, 8, 8),))
    out.square().sum().backward()
    assert net.embed.weight.grad.any() and net.gnn[0].TEN.fc_gamma.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reports_tell_predicted_from_drawn():
    model = vit(in_chans=3, class_token=True, global_pool="token", init_values=0.1)
    found = predict(hypernet(), model)
    rows = {r.spec.name: (r.action, r.source) for r in found.plan().recipes(found.target)}
    assert rows["blocks.0.attn.qkv.weight"][0] == "written"
    assert "predicted" in rows["blocks.0.attn.qkv.weight"][1]
    assert rows["cls_token"] == ("fresh", "torch.nn.init.trunc_normal_(std=0.02)")
    assert rows["blocks.0.ls1.gamma"][0] == "fresh" and "ones" in rows["blocks.0.ls1.gamma"][1]
    assert "zeros for tokens" in rows["pos_embed"][1]


def test_faithful_leaves_what_it_has_no_node_for():
    found = predict(hypernet(), torchvision_vit(), faithful=True)
    rows = {r.spec.name: r for r in found.plan().recipes(found.target)}
    assert rows["class_token"].action == "kept"
    plan = wi.plan_hypernet(torchvision_vit(), hypernet(), faithful=True)
    assert plan.recipes["class_token"].fill is None


def test_pith_needs_an_ancestor():
    with pytest.raises(ProjectionError, match="pass ancestor="):
        Prediction(hypernet("pith"), wi.anatomy(vit()))


def test_a_known_graph_is_used():
    net, model = hypernet(), vit(in_chans=3)
    graph = graph_of(wi.anatomy(model), softmax=True)
    plain, other = predict(net, model).parameters(), predict(net, model, graph=graph).parameters()
    name = "blocks.0.attn.proj.weight"
    assert not torch.equal(plain[name], other[name])


def test_tals_projection_is_predicted():
    """The released code never predicts it, and never trains it."""
    net, model = hypernet("tal"), vit(in_chans=3)
    graph = graph_of(wi.anatomy(model), extra={"M": (24, 16)})
    found = predict(net, model, graph=graph)
    m = found.weights[-1, "M"]
    assert m.shape == (24, 16)
    m.sum().backward()
    assert net.decoder.l2.weight.grad.any()
    assert found.parameters().keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("kind", ["logah", "tal"])
@pytest.mark.parametrize("tied", [True, False])
def test_gpt2(kind, tied):
    transformers = pytest.importorskip("transformers")
    options = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 40}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**options, tie_word_embeddings=tied)
    )
    net = hypernet(kind, primitives=18)
    found = predict(net, model)
    values = found.parameters()
    assert values.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert values[name].shape == parameter.shape and values[name].isfinite().all()
        assert values[name].requires_grad
    # Conv1D stores its weights transposed
    part = found.weights[0, "mlp.fc1.weight"]
    assert torch.equal(values["transformer.h.0.mlp.c_fc.weight"], part.T)


def test_half_of_timms_widths():
    for name in (
        "vit_base_patch16_siglip_224",
        "eva02_tiny_patch14_224",
        "deit_tiny_distilled_patch16_224",
    ):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1, embed_dim=48, num_heads=3)
        values = predict(hypernet(max_ck=8192), model).parameters()
        assert all(values[n].shape == p.shape for n, p in model.named_parameters())


def test_softmax_nodes_are_part_of_the_hypernetwork():
    """Graphs as torch 1 showed them: the same numbers as from a graph with such nodes."""
    one, other = hypernet("logah"), hypernet("logah", softmax=True)
    other.load_state_dict(one.state_dict())
    model = vit(in_chans=3)
    seen = wi.anatomy(model)
    found = predict(other, model).parameters()
    given = predict(one, model, graph=graph_of(seen, softmax=True)).parameters()
    assert all(torch.equal(found[name], given[name]) for name in given)
    plain = predict(one, model).parameters()["blocks.0.attn.proj.weight"]
    assert not torch.equal(found["blocks.0.attn.proj.weight"], plain)
