"""Projections that begin at a rule's: where they begin, and what they add."""

import pytest
import torch
from helpers.hypernet_reference import hypernet
from helpers.models import vit

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.hypernet.graph import graph_of
from weightinit.hypernet.network import Pass
from weightinit.hypernet.predict import Prediction
from weightinit.hypernet.refinement import ClosedForm

PAIRS = {
    "same": {},
    "wider": {"embed_dim": 32, "num_heads": 4},
    "narrower": {"embed_dim": 8, "num_heads": 1},
    "deeper": {"depth": 5},
    "shallower": {"depth": 1},
    "mixed": {"embed_dim": 32, "num_heads": 4, "depth": 2},
    "wide MLP": {"mlp_ratio": 6, "depth": 2},
    "an MLP of q, k and v's shape": {"mlp_ratio": 3},
    "larger images": {"img_size": 16},
    "tokens": {"class_token": True, "global_pool": "token", "reg_tokens": 1},
    "other head": {"num_classes": 3},
    "layer scale": {"init_values": 0.1},
}


def ruled(**changes):
    return hypernet("pith", start="rule", **changes)


def predicted(net, new, old, **options):
    return Prediction(net, wi.anatomy(new), ancestor=Ancestor.open(old), **options).parameters()


@pytest.mark.parametrize("pair", PAIRS)
def test_with_gates_at_zero_it_is_the_rule(pair):
    """But for what the rule would draw: that is predicted."""
    net, old, new = ruled(), vit(), vit(**PAIRS[pair])
    torch.nn.init.zeros_(net.gates)
    found = predicted(net, new, old)
    plan = wi.plan_projection(old, new)
    drawn = {name for name, recipe in plan.recipes.items() if recipe.action == "fresh"}
    expected = dict(plan.commit().named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if name not in drawn:
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    assert not drawn & {name for name in found if name.startswith("blocks") and "ls" not in name}


@pytest.mark.parametrize(
    "pair", ["same", "wider", "narrower", "mixed", "wide MLP", "an MLP of q, k and v's shape"]
)
@pytest.mark.parametrize("changes", [{}, {"separate": True}, {"pathway": "shared"}])
def test_what_is_added(pair, changes):
    """(P + dP) W_P (Q + dQ) + W_pred, multiplied out."""
    net, old, new = ruled(**changes), vit(), vit(**PAIRS[pair])
    with torch.no_grad():
        net.gates.copy_(torch.tensor([0.3, 0.5, 0.7]))
        found = predicted(net, new, old)
        seen = wi.anatomy(new)
        rule, graph = ClosedForm(seen, Ancestor.open(old)), graph_of(seen)
        run, other = Pass(net, net.encode(graph)), net(graph)
    for index, node in enumerate(graph.nodes):
        if node.block < 0 or node.op != "conv":
            continue
        for part, role in enumerate(node.roles):
            w, pw, wq = rule.halves(node.block, role)
            (out, n), into, rows = pw.shape, wq.shape[1], w.shape[0]
            sizes = (len(node.roles) * out, rows), (n, into)
            p, q = (x.dense()[0].detach() for x in run.pair([index], *sizes))
            p = 0.5 * rows**-0.5 * p[part * out : part * out + out]
            q = 0.7 * n**-0.5 * q
            whole = rule.weights[node.block, role] + p @ wq + pw @ q + p @ w @ q
            whole = whole + 0.3 * other[node.block, role].detach()
            spec = seen.blocks[node.block][role].spec
            own = seen.split(spec, found[spec.name])[role]
            torch.testing.assert_close(own, whole, atol=1e-5, rtol=1e-4)


def test_norms_are_predicted_around_one():
    net, old = ruled(), vit()
    net.gates.data.copy_(torch.tensor([1.0, 0, 0]))
    with torch.no_grad():
        found = predicted(net, vit(), old)["blocks.0.norm1.weight"]
        other = net(graph_of(wi.anatomy(vit())))[0, "norm1.weight"]
    torch.testing.assert_close(found, old.blocks[0].norm1.weight + other - 1)


def test_every_gate_learns():
    net = ruled()
    sum(v.square().sum() for v in predicted(net, vit(), vit(depth=2)).values()).backward()
    assert (net.gates.grad != 0).all()
    assert net.decoderpq.mlp.fc[0].weight.grad.any()


def test_a_known_rule_is_used_again():
    old, new = Ancestor.open(vit()), wi.anatomy(vit(depth=2))
    rule, net = ClosedForm(new, old), ruled()
    first = Prediction(net, new, ancestor=old).parameters()
    again = Prediction(net, new, ancestor=old, rule=rule).parameters()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert rule._halves


def test_reports_name_both():
    found = Prediction(ruled(), wi.anatomy(vit()), ancestor=Ancestor.open(vit(depth=2)))
    texts = {recipe.spec.name: recipe.source for recipe in found.plan().recipes(found.target)}
    assert "block 1" in texts["blocks.2.mlp.fc1.weight"]
    assert texts["blocks.2.mlp.fc1.weight"].endswith(", refined")
