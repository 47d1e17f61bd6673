import pytest
import timm
from torch import nn

from weightinit import AnatomyError
from weightinit.anatomy import Rule, anatomy


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def test_unknown_parameters_are_all_named():
    model = tiny()
    model.blocks[1].adapter = nn.Linear(12, 2)
    with pytest.raises(AnatomyError) as error:
        anatomy(model)
    assert "blocks.1.adapter.weight, blocks.1.adapter.bias" in str(error.value)
    assert "rules=[Rule(" in str(error.value)
    rules = [
        Rule(r"blocks\.(?P<block>\d+)\.adapter\.weight", "adapter.weight", "a d"),
        Rule(r"blocks\.(?P<block>\d+)\.adapter\.bias", "adapter.bias", "a"),
    ]
    seen = anatomy(model, rules=rules)
    assert seen.sizes["a"] == 2
    assert "adapter.bias" not in seen.blocks[0]
    assert seen.blocks[1]["adapter.weight"].size == (2, 12)


def test_the_callers_rules_come_first():
    rule = Rule(r"head\.(?P<w>weight)", "classes.{w}", "classes d", to="d classes")
    seen = anatomy(tiny(), rules=[rule])
    assert seen.outside["classes.weight"].size == (12, 5)
    assert (seen.sizes["classes"], seen.sizes["n"]) == (5, 5)


def test_a_model_of_the_callers_own():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    with pytest.raises(AnatomyError, match="any model known"):
        anatomy(model)
    rules = [Rule(r"0\.weight", "in.weight", "d c"), Rule(r"1\.weight", "out.weight", "n d")]
    seen = anatomy(model, rules=rules)
    assert (seen.family, seen.depth, seen.sizes) == ("custom", 0, {"d": 4, "c": 3, "n": 2})
