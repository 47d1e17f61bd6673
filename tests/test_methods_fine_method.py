import pytest
import timm
import torch
from helpers.inherit import Stub, fill, logits, small_vit
from helpers.models import draw, state_hash
from hypothesis import given, settings
from hypothesis import strategies as st

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.methods.fine.factors import Factors, factorize
from weightinit.methods.fine.method import FINE, matrices


def orthonormal(rows, columns, seed):
    return torch.linalg.qr(draw(rows, columns, seed=seed)).Q


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_shared_singular_vectors_are_recovered(depth, rank, more, other):
    left, right = orthonormal(rank + more, rank, 1), orthonormal(rank + other, rank, 2)
    weights = Factors(left, right, draw(depth, rank)).weight(draw(depth, rank))
    found = factorize(weights)
    torch.testing.assert_close(found.weight(found.spectra), weights, rtol=0, atol=1e-6)
    assert found.error < 1e-6


@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("shape", [(4, 5, 5), (3, 8, 4), (3, 4, 8), (1, 6, 6)])
def test_factors_are_orthonormal_and_better_than_those_of_the_mean(shape, rank):
    weights = draw(*shape)
    found = factorize(weights, rank)
    number = min(rank or 99, *shape[1:])
    for side in (found.left, found.right):
        torch.testing.assert_close(side.T @ side, torch.eye(number, dtype=torch.float64))
    best = torch.einsum("ir,lij,jr->lr", found.left, weights, found.right)
    torch.testing.assert_close(found.spectra, best)
    rest = weights - found.weight(found.spectra)
    assert found.error == pytest.approx(float(rest.norm() / weights.norm()))
    u, _, vh = torch.linalg.svd(weights.mean(0), full_matrices=False)
    alike = torch.einsum("ir,lij,rj->lr", u[:, :number], weights, vh[:number])
    assert float(alike.norm()) <= float(found.spectra.norm()) + 1e-9


def test_one_block_is_its_own_decomposition_and_zeros_stay_zero():
    weights = draw(1, 6, 4)
    assert factorize(weights).error < 1e-6
    u, s, vh = torch.linalg.svd(weights[0], full_matrices=False)
    found = factorize(weights, 2)
    torch.testing.assert_close(found.weight(found.spectra)[0], (u[:, :2] * s[:2]) @ vh[:2])
    assert factorize(torch.zeros(2, 4, 3)).error == 0


def test_every_matrix_of_the_target_has_the_shared_vectors():
    ancestor, model = small_vit(depth=4), small_vit(depth=6, num_classes=7)
    report = fill(model, ancestor, FINE(rank=5))
    old, new = anatomy(ancestor), anatomy(model)
    held = dict(ancestor.named_parameters()), dict(model.named_parameters())
    for role in ("attn.q.weight", "attn.v.weight", "attn.proj.weight", "mlp.fc2.weight"):
        theirs, mine = (
            torch.stack(
                [s.split(b[role].spec, h[b[role].spec.name].detach())[role] for b in s.blocks]
            )
            for s, h in zip((old, new), held, strict=True)
        )
        found = factorize(theirs, 5)
        torch.testing.assert_close(mine[0], found.weight(found.spectra[0]), rtol=0, atol=1e-4)
        between = found.weight(torch.lerp(found.spectra[1], found.spectra[2], 0.2))
        torch.testing.assert_close(mine[2], between, rtol=0, atol=1e-4)
        assert int((torch.linalg.svdvals(mine[3]) > 1e-4).sum()) == 5
    bias = torch.lerp(ancestor.blocks[0].mlp.fc1.bias, ancestor.blocks[1].mlp.fc1.bias, 0.6)
    torch.testing.assert_close(model.blocks[1].mlp.fc1.bias, bias)
    assert torch.equal(model.norm.weight, ancestor.norm.weight)
    (row,) = (row for row in report.rows if row.name == "blocks.1.mlp.fc1.weight")
    assert row.source == (
        "mlp.fc1.weight of 0.4 x block 0, 0.6 x block 1 (shared singular vectors of rank 5)"
    )
    assert next(row for row in report.rows if row.name == "head.weight").action == "fresh"


def test_an_ancestor_of_shared_vectors_is_kept_whole():
    ancestor, model = small_vit(depth=3), small_vit(depth=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    source = Stub(ancestor)
    with torch.no_grad():
        for key, members in matrices(source.anatomy).items():
            rows, columns = next(iter(members.values())).size
            number = min(rows, columns)
            left, right = orthonormal(rows, number, 3), orthonormal(columns, number, 4)
            spectra = draw(3, number, seed=len(key))
            for (index, piece), spectrum in zip(members.items(), spectra, strict=True):
                assert index < 3
                source.part(piece).copy_(Factors(left, right, spectra).weight(spectrum))
    fill(model, source, FINE())
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=1e-3, atol=1e-3)


def test_stages_have_vectors_of_their_own():
    sizes = {"dims": (8, 12, 16, 20), "num_classes": 3}
    ancestor = timm.create_model("convnext_atto", depths=(2, 2, 3, 2), **sizes)
    model = timm.create_model("convnext_atto", depths=(1, 3, 2, 4), **sizes)
    before = state_hash(ancestor)
    assert fill(model, ancestor, FINE(rank=4)).counts["fresh"] == 0
    assert state_hash(ancestor) == before
    weight = model.stages[3].blocks[3].mlp.fc1.weight.flatten(1)
    assert int((torch.linalg.svdvals(weight) > 1e-5).sum()) == 4


def test_only_depth_changes():
    for options in ({"width": 48, "heads": 6}, {"heads": 6}, {"mlp_ratio": 2}):
        with pytest.raises(ProjectionError, match=r"FINE changes depth only.* -> .*method='auto'"):
            fill(small_vit(**options), small_vit(), FINE())
    with pytest.raises(ProjectionError, match="rank=0: use a positive number"):
        FINE(rank=0)


def test_it_is_a_method_of_project_from():
    model = small_vit(depth=3)
    assert wi.project_from(small_vit(), model, method="fine") is model
