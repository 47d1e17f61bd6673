"""BoT against PyWavelets itself, on the stacked volumes of the paper."""

import sys

import pytest
import torch
from helpers.inherit import Stub, fill, logits, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.bot import BoT

pywt = pytest.importorskip("pywt")
PARTS = ("attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.proj.weight",
         "mlp.fc1.weight", "mlp.fc2.weight")  # fmt: skip
VECTORS = ("attn.q.bias", "attn.proj.bias", "mlp.fc1.bias", "norm1.weight", "norm2.bias")


def volume(model, role):
    """The parameters of one role in all blocks, ``[depth, *size]``."""
    seen = anatomy(model)
    values = dict(model.named_parameters())
    return torch.stack(
        [
            seen.split(block[role].spec, values[block[role].spec.name].detach())[role]
            for block in seen.blocks
        ]
    ).numpy()


@pytest.mark.parametrize("wavelet", ["haar", "db2", "coif3", "bior6.8"])
def test_shrinking_is_the_low_pass_band_of_every_volume(wavelet):
    ancestor, model = small_vit(32, 4, 4).double(), small_vit(16, 2, 2).double()
    fill(model, ancestor, BoT(wavelet=wavelet))
    for role in PARTS + VECTORS:
        whole = volume(ancestor, role)
        band = pywt.dwtn(whole, wavelet, mode="periodization")["a" * whole.ndim]
        torch.testing.assert_close(volume(model, role), band)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_growing_is_the_inverse_with_details_of_zero(wavelet):
    ancestor, model = small_vit(16, 2, 2).double(), small_vit(32, 4, 4).double()
    fill(model, ancestor, BoT(wavelet=wavelet))
    for role in PARTS + VECTORS:
        small = volume(ancestor, role)
        whole = pywt.idwtn({"a" * small.ndim: small}, wavelet, mode="periodization")
        torch.testing.assert_close(volume(model, role), whole)


@pytest.mark.parametrize("normalize", ["ortho", "mean"])
@pytest.mark.parametrize("wavelet", ["haar", "coif3"])
@pytest.mark.parametrize("large", [(16, 2, 4), (32, 4, 2), (64, 8, 8)])
def test_nothing_is_lost_on_the_way_up_and_down(wavelet, normalize, large):
    ancestor, between, back = (
        small_vit(*size).double() for size in ((16, 2, 2), large, (16, 2, 2))
    )
    for parameter in back.parameters():
        torch.nn.init.normal_(parameter)
    method = BoT(wavelet=wavelet, normalize=normalize)
    fill(between, ancestor, method)
    fill(back, between, method)
    for name, value in ancestor.named_parameters():
        torch.testing.assert_close(back.get_parameter(name), value)
    torch.testing.assert_close(logits(back), logits(ancestor))


def test_the_same_size_is_the_same_function():
    ancestor, model = small_vit(), small_vit()
    torch.nn.init.normal_(model.pos_embed)
    report = fill(model, ancestor, BoT())
    torch.testing.assert_close(logits(model), logits(ancestor))
    (row,) = (row for row in report.rows if row.name == "blocks.0.mlp.fc1.weight")
    assert row.source == "mlp.fc1.weight of block 0 (haar wavelets)"


def test_other_ratios_are_cut_and_the_report_says_so():
    ancestor, model = small_vit(16, 2, 4), small_vit(24, 3, 3, num_classes=7)
    report = fill(model, ancestor, BoT(normalize="mean"))
    (row,) = (row for row in report.rows if row.name == "blocks.2.mlp.fc1.weight")
    assert row.source == (
        "mlp.fc1.weight of block 2 (haar wavelets; d 16 to 24 in 1 step, cut from 32; "
        "m 64 to 96 in 1 step, cut from 128; h k 16 to 24 in 1 step, cut from 32; "
        "depth 4 to 3 in 0 steps, cut from 4)"
    )
    doubled = ancestor.blocks[2].mlp.fc1.weight.repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(model.blocks[2].mlp.fc1.weight, doubled[:96, :24])
    assert next(row for row in report.rows if row.name == "head.weight").action == "fresh"


def test_odd_depths_repeat_the_last_block():
    ancestor, model = small_vit(16, 2, 3), small_vit(16, 2, 2)
    fill(model, ancestor, BoT(normalize="mean"))
    torch.testing.assert_close(model.blocks[1].mlp.fc2.weight, ancestor.blocks[2].mlp.fc2.weight)


def test_layers_of_every_family_come_over():
    for name, sizes in (
        ("cait_xxs24_224", {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}),
        ("convnext_atto", {"depths": (2, 2, 2, 2), "dims": (8, 16, 24, 32)}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2, "embed_dim": 24, "num_heads": 2}),
    ):
        import timm

        half = {key: tuple(n // 2 for n in value) if isinstance(value, tuple) else value // 2
                for key, value in sizes.items() if key != "img_size"}  # fmt: skip
        ancestor = timm.create_model(name, num_classes=3, **sizes)
        model = timm.create_model(name, num_classes=3, **{**sizes, **half})
        assert fill(model, ancestor, BoT()).counts["fresh"] == 0, name


def test_errors_say_what_to_do(monkeypatch):
    with pytest.raises(ProjectionError, match="wavelet='sine'"):
        BoT(wavelet="sine")
    with pytest.raises(ProjectionError, match="normalize='max'"):
        BoT(normalize="max")
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(ProjectionError, match=r"pip install 'weightinit\[wavelets\]'"):
        BoT()


def test_it_is_a_method_of_project_from():
    ancestor, model = small_vit(16, 2, 4), small_vit(16, 2, 2)
    wi.project_from(ancestor, model, method="bot")
    again = small_vit(16, 2, 2)
    fill(again, Stub(ancestor), BoT())
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
