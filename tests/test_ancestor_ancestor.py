"""An ancestor: its tensors and parts, whatever it is made of, and nothing written to it."""

import weakref

import pytest
import torch
from helpers.ancestors import CONFIG, assert_same, write
from helpers.models import state_hash, vit

import weightinit as wi
from weightinit.ancestor.ancestor import Ancestor
from weightinit.ancestor.weights import Weights
from weightinit.errors import AnatomyError, BundleError, ProjectionError

#: No door touches the global generator.
pytestmark = pytest.mark.usefixtures("global_generator")


def test_a_module_is_read_and_never_written(model):
    model.train()
    before = state_hash(model)
    ancestor = wi.Ancestor.open(model)
    assert_same(ancestor, model)
    copy = ancestor.module()
    assert not copy.training and model.training
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert state_hash(model) == before
    assert ancestor.source == "a VisionTransformer" and "depth=3" in repr(ancestor)
    assert Ancestor.open(ancestor) is ancestor
    assert Ancestor.open(ancestor, heads=2) is ancestor


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(model, dtype, tmp_path):
    model = model.to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for source in (model, write(tmp_path / "made", model.state_dict(), CONFIG)):
        ancestor = Ancestor.open(source)
        assert_same(ancestor, model)
        piece = ancestor.anatomy.blocks[0]["attn.v.weight"]
        assert ancestor.part(piece).dtype == expected
        assert ancestor.stored("blocks.0.attn.qkv.weight").dtype == dtype
    # A folder's model runs in fp32, or in fp64 if that is what is stored.
    assert ancestor.module().head.weight.dtype == expected


def test_other_dtypes_are_refused():
    model = vit().to(torch.float8_e4m3fn)
    ancestor = Ancestor.open(model)
    with pytest.raises(BundleError, match=r"head.weight .* is torch.float8.*bfloat16"):
        ancestor.stored("head.weight")


def test_a_tensor_of_other_strides_has_its_parts():
    model = vit().to(memory_format=torch.channels_last)
    assert_same(Ancestor.open(model), model)


def test_a_piece_of_another_model_is_refused(model):
    ancestor = Ancestor.open(model)
    other = wi.anatomy(vit(embed_dim=32))
    with pytest.raises(AnatomyError, match="is not of a VisionTransformer"):
        ancestor.part(other.blocks[0]["attn.q.weight"])
    with pytest.raises(AnatomyError, match="no parameter is called"):
        ancestor.stored("blocks.7.attn.qkv.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(model, value, tmp_path):
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[-1, -1] = value
    for source in (model, write(tmp_path / "made", model.state_dict(), CONFIG)):
        ancestor = Ancestor.open(source)
        ancestor.part(ancestor.anatomy.blocks[0]["attn.q.weight"])
        with pytest.raises(BundleError, match=r"blocks\.1\.attn\.qkv\.weight .* NaN or infinity"):
            ancestor.part(ancestor.anatomy.blocks[1]["attn.q.weight"])


def test_a_sum_that_overflows_is_no_fault():
    model = vit().to(torch.float16)
    with torch.no_grad():
        model.pos_embed.fill_(60_000)
    assert Ancestor.open(model).stored("pos_embed").max() == 60_000


def test_each_stored_tensor_is_read_once_and_one_is_alive(model, tmp_path, monkeypatch):
    ancestor = Ancestor.open(write(tmp_path / "made", model.state_dict(), CONFIG))
    alive, most, reads = weakref.WeakSet(), 0, []
    real = Weights.read

    def read(self, name):
        nonlocal most
        tensor = real(self, name)
        alive.add(tensor)
        reads.append(name)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(Weights, "read", read)
    seen = ancestor.anatomy
    for pieces in (*seen.blocks, seen.outside):
        for piece in pieces.values():
            ancestor.part(piece)
    assert len(reads) == len(seen.specs) == len(set(reads))
    assert most == 1


def test_what_is_no_ancestor(model):
    for source in (None, 3, [model]):
        with pytest.raises(ProjectionError, match="is no ancestor: pass a module"):
            Ancestor.open(source)
    with pytest.raises(ProjectionError, match="leave revision= out"):
        Ancestor.open(model, revision="main")
