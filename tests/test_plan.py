import os

import pytest
import timm
import torch
import transformers
from helpers.models import state_hash, vit
from torch import nn

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.plan import Plan
from weightinit.recipes import Part, Recipe, assemble


def filled(model, value=0.5, **special):
    """A plan that writes `value` everywhere, and what `special` says by parameter name."""
    target = anatomy(model)

    def fill(name):
        return special.get(name) or (lambda out: out.fill_(value))

    recipes = [Recipe(s, "written", "test", fill(s.name)) for s in target.specs]
    return Plan(model, target, recipes, source="test")


def names(model):
    return [name for name, _ in model.named_parameters()]


def test_commit_writes_everything_in_place_and_returns_the_model():
    model = vit()
    before = {name: id(p) for name, p in model.named_parameters()}
    versions = {name: p._version for name, p in model.named_parameters()}
    assert filled(model).commit() is model
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name] and parameter._version > versions[name]
        assert bool((parameter == 0.5).all())


def raises(error):
    def fill(out):
        raise error

    return fill


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda out: out.fill_(float("nan")), ProjectionError),
        (lambda out: out.fill_(float("inf")), ProjectionError),
        (lambda out: out.copy_(torch.ones(3, 77)), RuntimeError),
        (raises(torch.OutOfMemoryError("no memory")), torch.OutOfMemoryError),
        (raises(KeyboardInterrupt()), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_fault_in_a_recipe_leaves_the_model_bit_identical(device, fault, error, where):
    with torch.device(device):
        model = vit()
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    name = names(model)[0 if where == "first" else -1]
    before = state_hash(model)
    plan = filled(model, **{name: fault})
    with pytest.raises(error):
        plan.commit()
    assert state_hash(model) == before
    with pytest.raises(error):
        plan.validate()


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("at", [0, 7, 40])
def test_a_fault_while_writing_is_undone(monkeypatch, error, at):
    model = vit().train()
    before = state_hash(model)
    plan = filled(model).validate()
    copies = []
    copy = torch.Tensor.copy_

    def faulty(self, *args, **kwargs):
        if len(copies) == at:
            monkeypatch.setattr(torch.Tensor, "copy_", copy)
            raise error("half-way")
        copies.append(1)
        return copy(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", faulty)
    with pytest.raises(error, match="half-way"):
        plan.commit()
    assert len(copies) == at and state_hash(model) == before


@pytest.mark.parametrize("at", [0, 3, 20])
def test_a_fault_while_materialising_is_undone(monkeypatch, at):
    with torch.device("meta"):
        model = timm.create_model("eva02_tiny_patch14_224", depth=2)
    before = state_hash(model)
    plan = filled(model).validate()
    swaps = []
    swap = torch._C._swap_tensor_impl

    def faulty(a, b):
        if len(swaps) == at:
            monkeypatch.setattr(torch._C, "_swap_tensor_impl", swap)
            raise KeyboardInterrupt
        swaps.append(1)
        swap(a, b)

    monkeypatch.setattr(torch._C, "_swap_tensor_impl", faulty)
    with pytest.raises(KeyboardInterrupt):
        plan.commit()
    assert state_hash(model) == before


def test_overflow_of_the_parameters_dtype_is_found_before_writing():
    model = vit().half()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"overflows torch\.float16"):
        filled(model, value=1e6).commit()
    assert state_hash(model) == before


def test_float8_is_written_and_its_overflow_found():
    model = vit().to(torch.float8_e4m3fn)
    filled(model, value=0.3).commit()
    assert model.norm.weight.float().unique() == torch.tensor(0.3).to(torch.float8_e4m3fn).float()
    with pytest.raises(ProjectionError, match=r"overflows torch\.float8_e4m3fn"):
        filled(model, value=1e6).commit()


def test_large_sums_are_not_mistaken_for_infinity():
    model = vit()
    filled(model, value=3e38).commit()
    assert float(model.head.weight.detach().min()) == pytest.approx(3e38)


def test_every_parameter_needs_a_recipe():
    model = vit()
    target = anatomy(model)
    recipes = [Recipe(s, "written", "test", lambda out: out.zero_()) for s in target.specs]
    with pytest.raises(ProjectionError, match=r"head\.bias"):
        Plan(model, target, recipes[:-1], source="test")


def test_kept_parameters_stay_and_cannot_be_on_meta():
    model = vit()
    target = anatomy(model)
    recipes = [Recipe(s, "kept", "asked") for s in target.specs]
    before = state_hash(model)
    Plan(model, target, recipes, source="test").commit()
    assert state_hash(model) == before
    with torch.device("meta"):
        model = vit()
    recipes = [Recipe(s, "kept", "asked") for s in anatomy(model).specs]
    with pytest.raises(ProjectionError, match="cannot keep"):
        Plan(model, anatomy(model), recipes, source="test")


def test_inference_parameters_are_refused():
    with torch.inference_mode():
        model = vit()
    with pytest.raises(ProjectionError, match="inference mode"):
        filled(model).commit()


def test_meta_keeps_parameter_objects_flags_and_optimizer_references():
    with torch.device("meta"):
        model = vit()
    model.norm.weight.requires_grad_(False)
    identities = {name: id(p) for name, p in model.named_parameters()}
    filled(model).commit()
    assert {name: id(p) for name, p in model.named_parameters()} == identities
    assert not model.norm.weight.requires_grad and model.head.weight.requires_grad
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    assert model.head.weight.grad is not None


def test_values_do_not_share_memory_with_the_plan_or_each_other():
    with torch.device("meta"):
        model = vit()
    filled(model).commit()
    pointers = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_buffers_that_cannot_be_rebuilt_are_named():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3))

    with torch.device("meta"):
        model = vit()
        model.blocks[0].strange = Strange()
    before = state_hash(model)
    with pytest.raises(ProjectionError, match=r"Strange has buffers \['table'\]"):
        filled(model).commit()
    assert state_hash(model) == before


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_base_patch16_rope_224"])
def test_meta_models_with_computed_buffers_equal_cpu_built_ones(name):
    generator = torch.Generator().manual_seed(0)
    options = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 28 if "14" in name else 32}
    built = timm.create_model(name, **options).eval()
    with torch.device("meta"):
        meta = timm.create_model(name, **options).eval()
    values = {
        n: torch.randn(p.shape, generator=generator) * 0.1 for n, p in built.named_parameters()
    }
    for model in (built, meta):
        fills = {n: (lambda out, v=v: out.copy_(v)) for n, v in values.items()}
        filled(model, **fills).commit()
    x = torch.randn(2, 3, options["img_size"], options["img_size"], generator=generator)
    with torch.no_grad():
        assert torch.equal(built(x), meta(x))


@pytest.mark.parametrize("name", ["BertModel", "RobertaForMaskedLM", "CLIPVisionModel"])
def test_meta_models_of_transformers_equal_cpu_built_ones(name):
    kind = getattr(transformers, name)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 12, "max_position_embeddings": 10, "intermediate_size": 16}
    image = {"image_size": 16, "patch_size": 8, "intermediate_size": 16}
    config = kind.config_class(**sizes, **(image if "Vision" in name else text))
    built = kind(config)
    with torch.device("meta"):
        meta = kind(config)
    random = torch.get_rng_state()
    wi.project_from(built, meta)
    assert torch.equal(torch.get_rng_state(), random)
    both = (dict([*model.named_parameters(), *model.named_buffers()]) for model in (built, meta))
    old, new = both
    assert old.keys() == new.keys()
    assert all(torch.equal(value, new[key]) for key, value in old.items())


def test_bfloat16_gets_the_rounded_float32_values():
    model, half = vit(), vit().bfloat16()
    for each in (model, half):
        filled(each, value=1 / 3).commit()
    assert torch.equal(model.head.weight.bfloat16(), half.head.weight)


def test_transformers_will_not_initialise_again():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    filled(model).commit()
    model.init_weights()
    assert all(bool((p == 0.5).all()) for p in model.parameters())


def test_report_says_what_is_done_with_every_parameter(bundle):
    model = vit(depth=5, num_classes=7)
    report = wi.plan_templates(model, bundle, keep=["pos"]).report()
    assert [row.name for row in report.rows] == names(model)
    assert report.counts == {"written": 64, "fresh": 2, "kept": 1}
    assert "head.weight" in str(report) and os.linesep in str(report)


def test_what_a_recipe_leaves_unwritten_is_found():
    model = vit()
    target = anatomy(model)
    recipes = [Recipe(s, "written", "test", lambda out: out[:1].zero_()) for s in target.specs]
    with pytest.raises(ProjectionError, match="not finite from test"):
        Plan(model, target, recipes, source="test").validate()


def test_parts_of_a_fused_parameter_are_all_kept_or_none():
    target = anatomy(vit())
    kept = Part("kept", "asked")
    zeros = Part("fresh", "zeros", lambda out: out.zero_())
    with pytest.raises(ProjectionError, match="store"):
        assemble(target, lambda piece: kept if "attn.q." in piece.role else zeros)


def test_a_parameter_is_written_if_any_part_is():
    target = anatomy(vit())
    zeros = Part("fresh", "zeros", lambda out: out.zero_())
    ones = Part("written", "templates", lambda out: out.fill_(1))
    recipes = assemble(target, lambda piece: ones if "attn.k.weight" in piece.role else zeros)
    fused = next(r for r in recipes if r.spec.role == "attn.qkv.weight")
    assert (fused.action, fused.source) == ("written", "zeros; templates")
    out = torch.full(fused.spec.shape, torch.nan)
    fused.fill(out)
    third = len(out) // 3
    assert out.sum() == out[third : 2 * third].numel()


def test_a_line_of_the_log_says_what_was_used(caplog):
    old, new = (vit(depth=depth) for depth in (2, 3))
    wi.project_from(old, new)
    assert not caplog.records
    with caplog.at_level("INFO", logger="weightinit"):
        wi.project_from(old, new)
        wi.init_from_templates(new, "digits-w32")
    projected, composed = (record.getMessage() for record in caplog.records)
    assert "ancestor a VisionTransformer" in projected and "'auto' picked LEMON" in projected
    assert composed.startswith("templates digits-w32: ") and " written, " in composed
