import pytest
import timm
import torch
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


@pytest.mark.parametrize("prefix", ["", "model.encoder.", "encoder_q.", "0.auto_model.", "a.1."])
def test_any_prefix_in_front_of_a_known_signature(prefix):
    weights = {prefix + name: value for name, value in tiny().state_dict().items()}
    seen = anatomy(weights, sizes={"h": 3})
    plain = anatomy(tiny())
    assert [spec.key for spec in seen.specs] == [spec.name for spec in plain.specs]
    assert [spec.name for spec in seen.specs] == list(weights)


def test_a_head_outside_the_prefix():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Module()
            self.model.vision = tiny(num_classes=0)
            self.model.head = nn.Linear(12, 7)

    seen = anatomy(Classifier())
    assert (seen.prefix, seen.sizes["h"], seen.sizes["n"]) == ("model.vision.", 3, 7)
    assert seen.spec("head.weight").name == "model.head.weight"


def test_several_models_are_named():
    both = nn.ModuleDict({"student": tiny(), "teacher": tiny()})
    for source in (both, both.state_dict()):
        with pytest.raises(AnatomyError, match=r"'student\.' \(a timm vit\), 'teacher\.' \(a timm"):
            anatomy(source)


def test_stages_of_an_unknown_model_are_no_models():
    with pytest.raises(AnatomyError, match="any model known"):
        anatomy(Stages())


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(tiny(num_classes=0) for _ in range(2))


def test_a_number_of_a_block_that_no_model_has():
    for digits in ("1000000000", "9" * 5000, "99999"):
        weights = {f"blocks.{digits}.norm1.weight": torch.zeros(4)}
        with pytest.raises(AnatomyError) as error:
            anatomy(weights, sizes={"h": 1})
        assert len(str(error.value)) < 1000
