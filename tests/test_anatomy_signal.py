import pytest
import timm
import torch
from helpers.inherit import bert, randomise, small_vit

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.anatomy.signal import silent
from weightinit.errors import ProjectionError


def convnext():
    sizes = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 5}
    return randomise(timm.create_model("convnext_atto", **sizes))


def gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return randomise(transformers.GPT2LMHeadModel(config))


MODELS = {
    "vit": small_vit,
    "branch": lambda: small_vit(block_fn=timm.models.vision_transformer.ResPostBlock),
    "bert": lambda: bert(16, tied=True),
    "convnext": convnext,
    "gpt2": gpt2,
}


def depends_on_input(model):
    """Whether two inputs have two outputs."""
    generator = torch.Generator().manual_seed(0)
    if hasattr(model, "config"):
        one, other = torch.randint(31, (2, 2, 8), generator=generator)
    else:
        size = getattr(getattr(model, "patch_embed", None), "img_size", (64, 64))
        one, other = torch.randn(2, 1, 3, *size, generator=generator)
    with torch.no_grad():
        a, b = (out if isinstance(out := model(x), torch.Tensor) else out.logits
                for x in (one, other))  # fmt: skip
    return bool((a - b).abs().max() > 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_of_zeros_is_told_as_the_forward_pass_tells(name):
    """One parameter after the other is made zero; only a head of zeros is let through."""
    model = MODELS[name]().eval()
    seen = anatomy(model)
    values = {name: p.detach() for name, p in model.named_parameters()}
    assert silent(seen, values) == [] and depends_on_input(model)
    for spec in seen.specs:
        parameter, kept = values[spec.name], values[spec.name].clone()
        parameter.zero_()
        expected = [] if depends_on_input(model) else [spec.name]
        parameter.copy_(kept)
        if any(
            piece.facts.kind == "head" or piece.facts.representation for piece in seen.pieces(spec)
        ):
            continue
        values[spec.name] = torch.zeros_like(kept)
        assert silent(seen, values) == expected, spec.name
        values[spec.name] = parameter


def test_attention_must_write_where_one_token_is_read():
    model = small_vit(init_values=0.1)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    values["blocks.0.ls1.gamma"].zero_()
    assert silent(anatomy(model), values) == []
    values["blocks.1.attn.qkv.weight"][-24:].zero_()
    assert silent(anatomy(model), values) == ["blocks.0.ls1.gamma", "blocks.1.attn.qkv.weight"]
    pooled = small_vit(init_values=0.1, class_token=False, global_pool="avg")
    zeros = {n: v.clone() for n, v in pooled.named_parameters() if ".attn." in n or "ls" in n}
    assert silent(anatomy(pooled), {n: torch.zeros_like(v) for n, v in zeros.items()}) == []


def test_a_plan_refuses_what_lets_nothing_through():
    old, new = bert(16, tied=True), bert(16, tied=True)
    with torch.no_grad():
        old.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
    before = {name: p.clone() for name, p in new.named_parameters()}
    plan = wi.plan_projection(old, new, method="weight_selection")
    with pytest.raises(ProjectionError, match=r"output\.LayerNorm\.weight would be zeros"):
        plan.commit()
    assert all(torch.equal(p, before[name]) for name, p in new.named_parameters())
