import warnings

import pytest
import timm

import weightinit as wi
from weightinit.templates.reach import TOKENS, WIDTH, out_of_reach


@pytest.fixture(scope="module")
def shipped():
    return wi.TemplateBundle.from_pretrained("cifar10-w64")


def vit(side, width):
    """A ViT of ``side`` x ``side`` patches."""
    size = {"img_size": 4 * side, "patch_size": 4, "embed_dim": width, "num_heads": 1}
    return timm.create_model("vit_tiny_patch16_224", **size, depth=1, num_classes=2)


@pytest.mark.parametrize(
    ("side", "width", "said"),
    [
        (4, 64, []),
        (8, 64 * WIDTH, []),  # 16 patches were trained, and 64 are 4 times as many
        (2, 16, []),
        (9, 64, ["number of patches of 81", f"up to {16 * TOKENS}"]),
        (4, 64 * WIDTH + 1, [f"width of {64 * WIDTH + 1}"]),
        (14, 384, ["number of patches of 196", "width of 384"]),
    ],
)
def test_what_was_not_measured_is_doubted(shipped, side, width, said):
    doubts = out_of_reach(shipped, wi.anatomy(vit(side, width)))
    assert len(doubts) == bool(said)
    assert all(words in doubt for doubt in doubts for words in (*said, "project_from"))


def test_the_default_warns_once_and_named_templates_never(shipped):
    far = vit(14, 384)
    with pytest.warns(UserWarning, match=r"init_from_templates: .*project_from") as caught:
        wi.init_from_templates(far)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "project_from" in str(wi.plan_templates(far).report())
    wi.init_from_templates(far, "cifar10-w64")
    wi.init_from_templates(far, shipped)
    wi.init_from_templates(vit(4, 64))


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    far = vit(14, 384)
    before = {name: p.clone() for name, p in far.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="project_from"):
            wi.init_from_templates(far)
    assert all(bool((p == before[name]).all()) for name, p in far.named_parameters())
