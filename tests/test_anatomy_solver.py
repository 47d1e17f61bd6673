import re

import pytest
import timm
import torch

from weightinit import AnatomyError
from weightinit.anatomy import Rule, anatomy


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def test_bare_state_dicts_need_the_head_count():
    state = tiny().state_dict()
    with pytest.raises(AnatomyError, match=r"sizes=\{'h': 6\}"):
        anatomy(state)
    seen = anatomy(state, sizes={"h": 3})
    assert (seen.sizes["k"], seen.traits.pos_prefix, seen.traits.grid) == (4, 1, (4, 4))
    # Normed queries tell the head dim, and with it the head count.
    assert anatomy(tiny(qk_norm=True).state_dict()).sizes["h"] == 3
    with pytest.raises(AnatomyError, match="contradict"):
        anatomy(state, sizes={"h": 5})
    with pytest.raises(AnatomyError, match="the module says 3"):
        anatomy(tiny(), sizes={"h": 6})


def test_the_half_that_gates_is_not_guessed():
    model = tiny(mlp_layer=timm.layers.SwiGLUPacked)
    first = anatomy(model).spec("blocks.0.mlp.fc1.weight")
    assert first.parts == ("mlp.fc1.weight", "mlp.up.weight")
    last = anatomy(tiny(mlp_layer=timm.layers.GluMlp)).spec("blocks.0.mlp.fc1.weight")
    assert last.parts == ("mlp.up.weight", "mlp.fc1.weight")
    with pytest.raises(AnatomyError, match="'gate_last'") as error:
        anatomy(model.state_dict(), sizes={"h": 3})
    # The rules that the message offers are code that works.
    rules = eval(re.search(r"rules=(\[.*\])", str(error.value))[1], {"Rule": Rule})
    assert anatomy(model.state_dict(), sizes={"h": 3}, rules=rules).specs == anatomy(model).specs


def test_the_order_of_a_linear_patch_embedding_is_not_guessed():
    pytest.importorskip("timm", minversion="1.0.28", reason="one order of patches before")
    kwargs = {"embed_dim": 12, "num_heads": 3, "depth": 1, "patch_size": 4}
    model = timm.create_model("naflexvit_base_patch16_gap", **kwargs)
    sizes = {"h": 3, "p": 4, "q": 4}
    with pytest.raises(AnatomyError, match=r"'channels_last'.*to='d c p q'") as error:
        anatomy(model.state_dict(), sizes=sizes)
    rules = eval(re.search(r"rules=(\[.*\])", str(error.value))[1], {"Rule": Rule})
    assert anatomy(model.state_dict(), sizes=sizes, rules=rules).specs == anatomy(model).specs
    with pytest.raises(AnatomyError, match=r"sizes \['c', 'p', 'q'\]"):
        anatomy(model.state_dict(), sizes={"h": 3})


def test_shapes_that_contradict_are_all_named():
    state = tiny().state_dict()
    state["norm.weight"] = torch.zeros(13)
    state["blocks.1.mlp.fc2.weight"] = torch.zeros(12, 47)
    state["head.weight"] = torch.zeros(5, 12, 1)
    with pytest.raises(AnatomyError) as error:
        anatomy(state, sizes={"h": 3})
    for name in ("norm.weight", "blocks.1.mlp.fc2.weight", "head.weight", '"d m"', "(12, 47)"):
        assert name in str(error.value)
