"""Template sets from the roles of any family."""

import pytest
import timm
import torch
from helpers.models import vit
from torch import nn

import weightinit as wi
from weightinit.anatomy import Rule
from weightinit.errors import BundleError
from weightinit.templates.kinds import TemplateKind


def test_of_a_vit_it_is_waves_set():
    with torch.device("meta"):
        seen = wi.anatomy(timm.create_model("vit_tiny_patch16_224"))
    for width in (64, 192):
        config = wi.TemplateConfig.of(seen, width=width, method="wave")
        assert config == wi.TemplateConfig.wave(width).restricted_to(seen)
    assert wi.TemplateConfig.of(seen, layers=3).kinds["mlp.fc1.weight"].number == 12
    assert wi.TemplateConfig.of(seen).method == "weit"


@pytest.mark.parametrize(
    "name",
    ["eva02_tiny_patch14_224", "deit3_small_patch16_224", "beit_base_patch16_224",
     "vit_base_patch16_siglip_224", "convnext_atto", "convnextv2_atto",
     "vit_dpwee_patch16_reg1_gap_256"],
)  # fmt: skip
def test_every_role_of_the_blocks_has_a_kind(name):
    with torch.device("meta"):
        seen = wi.anatomy(timm.create_model(name))
    config = wi.TemplateConfig.of(seen)
    assert config.restricted_to(seen) == config
    for block in seen.blocks:
        for role, piece in block.items():
            kind = config.kind(role, piece.spec.stack)
            assert kind in config.kinds, role
    assert wi.TemplateConfig.from_dict(config.to_dict()) == config


def test_stages_have_kinds_of_their_own():
    with torch.device("meta"):
        seen = wi.anatomy(timm.create_model("convnextv2_atto"))  # 40 to 320, depths 2 2 6 2
    kinds = wi.TemplateConfig.of(seen).kinds
    assert kinds["stages.2.mlp.fc1.weight"] == TemplateKind(8, (160, 160), 1, "stages.2")
    assert kinds["stages.0.mlp.fc1.weight"] == TemplateKind(4, (40, 40), 1, "stages.0")
    assert kinds["stages.2.conv_dw.weight"] == TemplateKind(4, (160, 49), 1, "stages.2")
    assert kinds["stages.2.mlp.grn.bias"] == TemplateKind(4, (640,), 1, "stages.2")
    # 64 r^2 + 32 r a block where two layers' worth of templates are used.
    config, stage = wi.TemplateConfig.of(seen), seen.stacks["stages.2"]
    spec = {k: v for k, v in config.kinds.items() if v.stack == "stages.2"}
    number = sum(
        kind.number * torch.Size(config.scaler_shape(name, size)).numel()
        for name, kind in spec.items()
        for size in [(160,) if len(kind.shape) == 1 and kind.shape == (160,) else kind_size(name)]
    )
    assert number == 64 + 32 and len(stage) == 6


def kind_size(name):
    return {"fc1.weight": (640, 160), "fc2.weight": (160, 640), "dw.weight": (160, 49)}.get(
        name.split("mlp.")[-1].split("conv_")[-1], (640,)
    )


def test_a_width_that_does_not_divide_is_named():
    with pytest.raises(BundleError, match="use another width"):
        wi.TemplateConfig.of(wi.anatomy(vit(mlp_ratio=2.5)), width=7)


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return x


RULES = [
    Rule(r"(?P<stack>blocks)\.(?P<block>\d+)\.weight", "mlp.fc2.weight", "d m"),
    Rule(r"(?P<stack>blocks)\.(?P<block>\d+)\.bias", "mlp.fc2.bias", "d"),
    Rule(r"embed\.weight", "limb.weight", "d i"),
    Rule(r"embed\.bias", "limb.bias", "d"),
]


def test_models_of_ones_own_are_constrained_by_rules():
    torch.manual_seed(0)
    model = Policy()
    config = wi.TemplateConfig.of(wi.anatomy(model, rules=RULES))
    made = wi.constrain(model, config, rules=RULES)
    assert set(made.config.kinds) == {"mlp.fc2.weight", "mlp.fc2.bias"}
    made(torch.ones(2, 3)).sum().backward()
    bundle = made.to_bundle()
    target = wi.init_from_templates(Policy(), bundle, rules=RULES)
    torch.testing.assert_close(target(torch.ones(2, 3)), made(torch.ones(2, 3)))
    fitted = wi.fit_scalers(
        target, bundle, lambda m: m(torch.ones(2, 3)).square().sum(), steps=1, rules=RULES
    )
    assert len(fitted.config.fitted) == 1
