import pytest

from weightinit.anatomy import Labels, label_of
from weightinit.anatomy.labels import LABELS, LOCAL_LABELS
from weightinit.anatomy.pattern import parse
from weightinit.anatomy.rules import FAMILIES


def labels_of_rules():
    rules = [rule for family in FAMILIES for rule in family.outside]
    rules += [rule for family in FAMILIES for stack in family.stacks for rule in stack.rules]
    patterns = (pattern.format(s=0) for rule in rules for pattern in (rule.pattern, rule.to))
    return {label for pattern in patterns for label in parse(pattern).labels}


def test_every_label_of_a_rule_is_in_the_vocabulary():
    assert all(label_of(label).meaning != "one's own" for label in labels_of_rules())


@pytest.mark.parametrize("label", ["mine", "adapter", "dim", "heads", "x2y"])
def test_a_label_of_ones_own_keeps_its_length(label):
    assert label_of(label).kind == "fixed" and not Labels((label,)).channel


def test_stages_are_streams_and_hidden_axes_of_their_own():
    assert label_of("d3").stream and label_of("m2").kind == "channel"
    assert not Labels(("m2",)).stream and not label_of("k1").stream


def test_an_axis_is_of_channels_if_all_its_labels_are():
    assert Labels("hk").channel and not Labels(("gh", "gw")).channel
    assert not Labels(("h", "u")).channel and Labels(("gh", "gw")).position


def test_labels_equal_plain_tuples():
    assert {("h", "k"): 1}[Labels("hk")] == 1 and str(Labels("hk")) == "h k"


def test_local_labels_are_those_that_shapes_tell_one_by_one():
    assert frozenset("ruoiyxe") == LOCAL_LABELS and set(LABELS) >= LOCAL_LABELS
