import pytest
import torch
from helpers.models import state_hash, vit
from helpers.training import hypernet

from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.hypernet.samplers import micro
from weightinit.training.data import load_data
from weightinit.training.targets import Targets, zero_shot
from weightinit.training.text import load_text

ARCHITECTURE = micro(48, 3, image_size=8)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_each_architecture_is_built_once_for_each_number_of_classes(digits):
    targets = Targets(hypernet())
    first = targets(ARCHITECTURE, digits)
    assert targets(dict(reversed(ARCHITECTURE.items())), digits) is first
    assert targets(micro(64, 3, image_size=8), digits) is not first
    assert all(p.is_meta for p in first.model.parameters()) and first.model.training
    assert first.rule is None and len(first.graph.nodes) == 12 * 3 + 9


def test_zero_shot_is_the_accuracy_of_the_predicted_network(digits):
    net = hypernet()
    before = state_hash(net)
    found = zero_shot(net, ARCHITECTURE, digits)
    model = vit(embed_dim=48, depth=3, num_heads=3, num_classes=10, patch_size=2)
    target = Targets(net)(ARCHITECTURE, digits)
    model.load_state_dict(Targets(net).predict(target).parameters())
    assert found == digits.score(model)
    part = digits.test.rows(torch.arange(50))
    assert zero_shot(net, ARCHITECTURE, digits, split=part) == digits.score(model, part)
    assert state_hash(net) == before


def test_a_rule_start_begins_at_the_rule(digits):
    ancestor = vit(embed_dim=32, num_classes=10)
    targets = Targets(hypernet("pith", start="rule"), Ancestor.open(ancestor))
    target = targets(micro(32, 3, image_size=8) | {"patch_size": 2}, digits)
    assert target.rule is not None
    for name, value in targets.predict(target).parameters().items():
        assert (value - ancestor.get_parameter(name)).norm() < 0.2 * value.norm() + 0.2, name


def test_an_ancestor_is_read_once_and_left_alone(digits, monkeypatch):
    ancestor = vit(num_classes=10)
    before = state_hash(ancestor)
    targets = Targets(hypernet("pith"), Ancestor.open(ancestor))
    target = targets(ARCHITECTURE, digits)
    first = targets.predict(target).parameters()
    monkeypatch.setattr(Ancestor, "part", lambda *_: pytest.fail("read again"))
    again = targets.predict(target).parameters()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert state_hash(ancestor) == before


def test_what_does_not_fit_raises(digits):
    with pytest.raises(ProjectionError, match="pass ancestor="):
        zero_shot(hypernet("pith"), ARCHITECTURE, digits)
    with pytest.raises(ProjectionError, match="needs a task"):
        zero_shot(hypernet("tal", task_dim=5), ARCHITECTURE, digits)


def test_a_language_model_is_trained_on_as_it_is_predicted(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "text.txt").write_text("the quick brown fox " * 200)
    data = load_text(tmp_path / "text.txt", context=16)
    kwargs = {"n_layer": 2, "n_embd": 32, "n_head": 2, "tie_word_embeddings": False}
    net = hypernet(language="llm", primitives=18, num_classes=256)
    target = Targets(net)(kwargs, data)
    assert target.graph.stored and any(node.turned for node in target.graph.nodes)
