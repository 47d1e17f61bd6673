import pytest
import timm
import torch
from helpers.inherit import Stub, fill, logits, randomise, small_vit

import weightinit as wi
from weightinit.anatomy import Labels, anatomy, facts
from weightinit.errors import ProjectionError
from weightinit.inherit.axis import Axis
from weightinit.inherit.depth import mixes
from weightinit.inherit.transfer import Place, Transfer, transfer_parts
from weightinit.plan import Plan
from weightinit.recipes import Inheritance


class Ops:
    """A method of given operators."""

    def __init__(self, depth="uniform", **axes):
        self.depth, self.ops = depth, {Labels(k.split("_")): v for k, v in axes.items()}

    def plan(self, source, target, seed=0):
        depth = mixes(self.depth, source.anatomy, target)
        transfer = Transfer(lambda label, place: self.ops.get(label), depth, "test")
        return Inheritance(transfer_parts(source, target, transfer, seed=seed))


def permuted(size, seed=0):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return Axis(order, order)


def test_a_permutation_of_every_axis_is_the_same_function():
    """Every parameter must be acted on along the right axes, on the right side."""
    ancestor, model = (small_vit(24, 3, 2, init_values=0.1) for _ in range(2))
    heads = (torch.tensor([2, 0, 1])[:, None] * 8 + torch.arange(8)).flatten()
    ops = Ops(d=permuted(24), m=permuted(96, 1), h_k=Axis(heads, heads))
    report = fill(model, ancestor, ops)
    assert report.counts["fresh"] == 0
    assert not torch.equal(model.pos_embed, ancestor.pos_embed)
    torch.testing.assert_close(logits(model), logits(ancestor), atol=1e-5, rtol=1e-5)


def test_matrices_act_as_p_w_q_transposed():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(16, 24, generator=generator) for _ in range(2))
    ancestor, model = small_vit(24, 3, 1), small_vit(16, 2, 1, mlp_ratio=6.0)
    fill(model, ancestor, Ops(d=Axis(p, q), h_k=Axis(p, q), m=permuted(96)))
    old, new = ancestor.blocks[0].attn, model.blocks[0].attn
    torch.testing.assert_close(new.proj.weight, p @ old.proj.weight @ q.T)
    torch.testing.assert_close(model.head.weight, ancestor.head.weight @ q.T)
    v = (x.qkv.weight.unflatten(0, (3, -1))[2] for x in (old, new))
    torch.testing.assert_close(p @ next(v) @ q.T, next(v))


def test_blocks_are_mixed():
    ancestor, model = small_vit(depth=2), small_vit(depth=3)
    fill(model, ancestor, Ops("interpolate"))
    a, b = (block.mlp.fc1.weight for block in ancestor.blocks)
    torch.testing.assert_close(model.blocks[1].mlp.fc1.weight, (a + b) / 2)


def test_what_the_ancestor_lacks_is_fresh_by_rule():
    ancestor, model = small_vit(qkv_bias=False, num_classes=3), small_vit(init_values=0.1)
    report = fill(model, ancestor, Ops())
    assert not bool(model.blocks[0].attn.qkv.bias.any())
    assert bool((model.blocks[0].ls1.gamma == 1).all())
    fresh = {row.name for row in report.rows if row.action == "fresh"}
    assert "blocks.0.attn.qkv.bias" in fresh and "head.weight" in fresh


def test_new_blocks_are_written_by_the_method():
    ancestor, model = small_vit(depth=1), small_vit(depth=2)
    seen = anatomy(model)

    def new(place, out):
        if place.role in ("attn.proj.weight", "mlp.fc2.weight", "attn.proj.bias", "mlp.fc2.bias"):
            out.zero_()
            return True
        return False

    transfer = Transfer(lambda label, place: None, [((0, 1.0),), ()], "test", new=new)
    recipes = Inheritance(transfer_parts(Stub(ancestor), seen, transfer)).recipes(seen)
    Plan(model, seen, recipes, source="stub").commit()
    torch.testing.assert_close(logits(model), logits(ancestor))


def test_separate_and_fused_attention_are_one():
    """timm stores q, k and v as one tensor; EVA-02 can store them apart."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2}
    fused, apart = (
        timm.models.Eva(**sizes, num_classes=5, qkv_fused=one, use_rot_pos_emb=False).eval()
        for one in (True, False)
    )
    fill(apart, fused, Ops())
    assert torch.equal(
        torch.cat([getattr(apart.blocks[1].attn, f"{x}_proj").weight for x in "qkv"]),
        fused.blocks[1].attn.qkv.weight,
    )


@pytest.mark.parametrize(
    ("role", "dim", "dims", "wanted"),
    [
        ("attn.q.weight", 0, 2, "rows"),
        ("attn.q.weight", 1, 2, "columns"),
        ("attn.q.bias", 0, 1, "rows"),
        ("norm2.weight", 0, 1, "gain"),
        ("norm2.bias", 0, 1, "rows"),
        ("ls1", 0, 1, "gain"),
        ("pos", 1, 2, "rows"),
        ("token.cls", 1, 2, "rows"),
    ],
)
def test_sides(role, dim, dims, wanted):
    assert facts(role).side(dim, dims) == wanted


def test_operators_know_their_place():
    seen = []

    def axes(label, place):
        seen.append((label, place))

    ancestor, model = small_vit(depth=2), small_vit(depth=1)
    target = anatomy(model)
    transfer = Transfer(axes, mixes("last", anatomy(ancestor), target), "test")
    planned = Inheritance(transfer_parts(Stub(ancestor), target, transfer))
    Plan(model, target, planned.recipes(target), source="s").commit()
    assert (("m",), Place("mlp.fc1.weight", 0, 1)) in seen
    assert (("d",), Place("pos")) in seen


def gpt2(width=24, heads=3, depth=2, *, tied=True):
    import transformers

    config = transformers.GPT2Config(
        n_embd=width, n_head=heads, n_layer=depth, vocab_size=30, n_positions=16,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return randomise(transformers.GPT2LMHeadModel(config)).double()


@pytest.mark.parametrize("method", ["lemon", "hypercloning", "net2net"])
def test_an_untied_head_comes_from_the_embedding(method):
    ancestor, model = gpt2(), gpt2(48, 6, 3, tied=False)
    plan = wi.plan_projection(ancestor, model, method=method)
    report = plan.report()
    assert report.counts["fresh"] == 0 and "is lossless here" in report.notes[-1]
    plan.commit()
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], ancestor(tokens)[0], atol=1e-10, rtol=0)


def test_a_head_of_other_classes_is_not_the_embedding():
    model = gpt2(tied=False)
    model.lm_head = torch.nn.Linear(24, 7, bias=False).double()
    report = wi.plan_projection(gpt2(), model, method="weight_selection").report()
    assert [row.name for row in report.rows if row.action == "fresh"] == ["lm_head.weight"]


def test_what_no_operator_makes_fit_is_named():
    model, ancestor = small_vit(16, 2), small_vit(24, 3)
    first = Axis(torch.arange(16), torch.arange(16))
    said = r"attn\.q\.weight of blocks\.0\.attn.*would be \[24, 16\].*ancestor's size"
    with pytest.raises(ProjectionError, match=said):
        fill(model, ancestor, Ops(d=first))
