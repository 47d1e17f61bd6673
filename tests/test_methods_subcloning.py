import pytest
import torch
from helpers.inherit import fill, logits, small_vit
from helpers.models import draw, state_hash
from transformers import BertConfig, BertForSequenceClassification

import weightinit as wi
from weightinit.anatomy import Labels
from weightinit.ancestor.ancestor import Ancestor
from weightinit.errors import ProjectionError
from weightinit.inherit.running import Running
from weightinit.methods.subcloning import Subcloning, mean_inputs

IMAGES = [draw(4, 3, 16, 16, seed=seed) for seed in (1, 2)]


def test_means_are_those_of_what_matrices_read():
    model = small_vit().double()
    seen = {}

    def hook(name):
        return lambda module, args: seen.setdefault(name, []).append(args[0].detach())

    for name in ("blocks.1.mlp.fc1", "blocks.1.mlp.fc2", "blocks.0.attn.proj", "head"):
        model.get_submodule(name).register_forward_pre_hook(hook(name))
    for images in IMAGES:
        model(images)
    means = mean_inputs(Running(Ancestor.open(model), IMAGES))
    for key, name in {
        (1, Labels("m")): "blocks.1.mlp.fc2",
        (0, Labels("hk")): "blocks.0.attn.proj",
    }.items():
        wanted = torch.cat(seen[name]).abs().flatten(0, -2).mean(0)
        torch.testing.assert_close(means[key], wanted)
    torch.testing.assert_close(means[-1, Labels("d")], torch.cat(seen["head"]).abs().mean(0))
    assert set(means) == {(i, Labels(x)) for i in (0, 1) for x in ("d", "hk", "m")} | {
        (-1, Labels("d"))
    }


def test_the_loudest_are_kept_everywhere_alike():
    ancestor, model = small_vit(24, 3), small_vit(16, 2)
    means = mean_inputs(Running(Ancestor.open(ancestor), IMAGES))
    fill(model, ancestor.float(), Subcloning(rescale=False), calibration=IMAGES)
    stream = torch.stack([x / x.mean() for (_, label), x in means.items() if label == ("d",)])
    kept = stream.mean(0).argsort(descending=True)[:16]
    assert torch.equal(model.pos_embed, ancestor.pos_embed[..., kept])
    neurons = means[1, Labels("m")].argsort(descending=True)[:64]
    fc1 = ancestor.blocks[1].mlp.fc1
    assert torch.equal(model.blocks[1].mlp.fc1.weight, fc1.weight[neurons][:, kept])
    heads = means[0, Labels("hk")].view(3, 8).mean(1).argsort(descending=True)[:2]
    rows = (heads[:, None] * 8 + torch.arange(8)).flatten()
    proj = ancestor.blocks[0].attn.proj.weight
    assert torch.equal(model.blocks[0].attn.proj.weight, proj[kept][:, rows])
    scaled = small_vit(16, 2)
    fill(scaled, ancestor, Subcloning(), calibration=IMAGES)
    torch.testing.assert_close(
        scaled.blocks[0].attn.proj.weight, proj[kept][:, rows] * (24 / 16) ** 0.5
    )
    assert torch.equal(scaled.pos_embed, model.pos_embed)


def test_the_same_size_is_the_same_function_and_depth_is_chosen():
    ancestor, model = small_vit(depth=5).double(), small_vit(depth=5).double()
    torch.nn.init.normal_(model.pos_embed)
    fill(model, ancestor, Subcloning(), calibration=IMAGES)
    torch.testing.assert_close(logits(model), logits(ancestor), rtol=0, atol=1e-10)
    shallow = small_vit(depth=3).double()
    fill(shallow, ancestor, Subcloning(), calibration=IMAGES)
    for mine, theirs in enumerate((0, 2, 4)):
        wanted = ancestor.blocks[theirs].mlp.fc2.weight
        assert torch.equal(shallow.blocks[mine].mlp.fc2.weight, wanted)


def test_blocks_with_norms_after_them_are_ranked_too():
    def bert(width, heads):
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=20, hidden_size=width, num_hidden_layers=2, num_attention_heads=heads,
                intermediate_size=2 * width, max_position_embeddings=8,
            )
        )  # fmt: skip

    model = bert(8, 2)
    batches = [{"input_ids": torch.randint(0, 20, (2, 6)), "labels": torch.zeros(2)}]
    wi.project_from(bert(16, 4), model, method="subcloning", calibration=batches)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 48, "heads": 6}, "d 24 -> 48.*use method='auto'"),
        ({"depth": 3}, "depth 2 -> 3"),
        ({"width": 12, "heads": 3}, r"head dim .* 8 -> 4 differs: keep"),
    ],
)
def test_what_is_no_smaller_raises(changes, words):
    model = small_vit(**changes)
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=words):
        wi.project_from(small_vit(), model, method="subcloning", calibration=IMAGES)
    assert state_hash(model) == before


def test_calibration_is_needed():
    with pytest.raises(ProjectionError, match="pass a few unlabelled batches"):
        wi.project_from(small_vit(24, 3), small_vit(16, 2), method="subcloning")
    nans = [torch.full((2, 3, 16, 16), float("nan"))]
    with pytest.raises(ProjectionError, match="not finite"):
        wi.project_from(small_vit(24, 3), small_vit(16, 2), method="subcloning", calibration=nans)


def test_the_heads_of_an_attention_pool_are_kept_whole():
    build = lambda width: small_vit(width, width // 8, 2, class_token=False, global_pool="map")  # noqa: E731
    old, new = build(32), build(16)
    with torch.no_grad():
        old.attn_pool.kv.weight[32:][:16] *= 1e-3  # the values of the first two of four heads
        old.attn_pool.kv.bias[32:][:16] *= 1e-3
    batches = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    wi.project_from(old, new, method=wi.Subcloning(rescale=False), calibration=batches)
    kept = new.attn_pool.kv.bias[16:].view(2, 8)
    heads = old.attn_pool.kv.bias[32:].view(4, 8)
    assert {i for i in range(4) for one in kept if torch.equal(heads[i], one)} == {2, 3}
