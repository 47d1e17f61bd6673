"""Networks inside a network: trained together, and started from one bundle."""

import copy
import pickle

import pytest
import torch
from helpers.models import state_hash, vit
from torch import nn

import weightinit as wi
from weightinit.errors import ProjectionError
from weightinit.templates.narrow import narrowed

WHOLE = {"depth": 4, "embed_dim": 32, "num_heads": 4}
SIZES = wi.Sizes(depths=(2, 3, 4), widths=(1, 0.75, 0.5))
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def build(size, **changes):
    return vit(depth=size.depth, embed_dim=size.width, num_heads=size.heads, **changes)


def nested(sizes=SIZES, *, trained=True, **changes):
    """A nested model, of random parameters as a training would leave them."""
    model = vit(**WHOLE, **changes)
    config = wi.TemplateConfig.of(wi.anatomy(model))
    made = wi.constrain(model, config, sizes=sizes, build=lambda size: build(size, **changes))
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def test_the_sizes_are_all_depths_at_all_widths():
    model = nested()
    sizes = [(size.depth, size.width, size.heads) for size in model.sizes]
    assert sizes[0] == (4, 32, 4) and model.full is model.sizes[0]
    assert set(sizes) == {(d, 8 * h, h) for d in (2, 3, 4) for h in (2, 3, 4)}
    assert len(sizes) == 9


@pytest.mark.parametrize(
    ("width", "heads", "depth", "inner"),
    [
        (32, 4, 3, (3, 1)),  # the width itself
        (16, 2, 2, (2, 0.5)),
        (24, 3, 4, (4, 0.75)),
        (64, 8, 3, (3, 1)),  # two copies
        (48, 6, 2, (2, 0.75)),
        (72, 9, 4, (4, 0.75)),  # three
        (96, 12, 4, (4, 1)),
    ],
)
def test_a_target_computes_what_the_trained_network_inside_does(width, heads, depth, inner):
    model = nested().double().eval()
    target = vit(depth=depth, embed_dim=width, num_heads=heads).double()
    images = IMAGES.double()
    wi.init_from_templates(target, model.to_bundle())
    with model.at(depth=inner[0], width=inner[1]), torch.no_grad():
        expected = model(images)
    torch.testing.assert_close(target(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("width", "heads"), [(40, 5), (56, 7)])
def test_a_wider_target_is_made_of_whole_templates_where_no_trained_width_tiles_it(width, heads):
    """40 is five copies of the narrowest width, and 56 seven of it: the least that was trained."""
    bundle = nested().to_bundle()
    target = wi.anatomy(vit(depth=4, embed_dim=width, num_heads=heads))
    assert narrowed(bundle, target) is bundle


def test_copies_are_told_apart_by_noise_that_sums_to_zero():
    target = vit(depth=3, embed_dim=64, num_heads=8)
    wi.init_from_templates(target, nested().to_bundle())
    weight = target.blocks[0].mlp.fc1.weight
    assert not torch.allclose(weight[:, :32], weight[:, 32:])


def test_a_width_that_no_copies_make_is_cropped():
    """40 is 5 heads of 8: more than the templates, less than two copies of the narrowest."""
    model = nested(wi.Sizes(widths=(1, 0.75)))
    target = vit(depth=4, embed_dim=40, num_heads=5)
    wi.init_from_templates(target, model.to_bundle())
    assert torch.isfinite(target(IMAGES)).all()


def test_inner_networks_are_composed_of_sliced_templates():
    model = nested()
    with model.at(depth=2, width=0.5), torch.no_grad():
        model(IMAGES)
        shell = model.shells[model.sizes.index(model.last) - 1].model
        kinds = model.template_values(), model.scaler_values()
    t, s = (values["mlp.fc1.weight"] for values in kinds)
    sliced = wi.kernels.kron_sum(t[:, :16, :16], s[1])
    assert torch.equal(shell.blocks[1].mlp.fc1.weight, sliced)
    t, s = (values["mlp.fc1.bias"] for values in kinds)
    tiles = t.unflatten(1, (4, 32))[..., :16].flatten(1)
    assert torch.equal(shell.blocks[1].mlp.fc1.bias, wi.kernels.kron_sum(tiles, s[1]))
    t, s = (values["attn.qkv.bias"] for values in kinds)
    parts = [wi.kernels.kron_sum(part[:, :16], s[1]) for part in t.chunk(3, 1)]
    assert torch.equal(shell.blocks[1].attn.qkv.bias, torch.cat(parts))
    assert torch.equal(shell.pos_embed, model.model.pos_embed[..., :16])
    assert torch.equal(shell.head.weight, model.model.head.weight[:, :16])


@pytest.mark.parametrize("policy", ["half", "sandwich"])
def test_sizes_are_drawn_by_the_seed_and_the_call(policy):
    model = nested(wi.Sizes((2, 3), (1, 0.5), policy=policy, seed=3)).train()
    drawn = [model.drawn(call) for call in range(200)]
    assert drawn == [model.drawn(call) for call in range(200)]
    assert set(drawn) == set(model.sizes)
    if policy == "sandwich":
        assert model.passes == 2
        assert {d is model.full for d in drawn[::2]} == {True}
        assert model.full not in drawn[1::2]
    else:
        assert model.passes == 1 and 90 < drawn.count(model.full) < 140
    state = torch.get_rng_state()
    for call in range(4):
        model(IMAGES)
        assert model.last is drawn[call]
    assert model.calls == 4 and torch.equal(torch.get_rng_state(), state)
    model.eval()(IMAGES)
    assert model.last is model.full and model.calls == 4


def test_a_resumed_run_has_the_same_bits():
    def steps(model, optimizer, number):
        for _ in range(number):
            model(IMAGES).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    one, other = nested().train(), nested(trained=False).train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (one, other)]
    steps(one, optimizers[0], 3)
    other.load_state_dict(one.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    steps(one, optimizers[0], 5)
    steps(other, optimizers[1], 5)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_moves_templates_scalers_and_what_is_outside_alone():
    model = nested()
    names = {name for name, _ in model.named_parameters()}
    outside = {f"model.{n}" for n in dict(vit().named_parameters()) if not n.startswith("blocks.")}
    kinds = {kind.replace(".", "_") for kind in model.config.kinds}
    assert names == outside | {f"{h}.{k}" for h in ("templates", "scalers") for k in kinds}
    assert set(model.state_dict()) == names | {"_extra_state"}


def test_every_template_and_scaler_has_a_gradient_by_the_second_step():
    model = nested(trained=False, init_values=1e-4).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = {name: False for name, _ in model.named_parameters()}
    for _ in range(2):
        with model.at(model.full):
            model(IMAGES).square().sum().backward()
        for name, parameter in model.named_parameters():
            rows = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[None]
            seen[name] |= bool(rows.any(1).all())
        optimizer.step()
        optimizer.zero_grad()
    assert all(seen.values()), [name for name, found in seen.items() if not found]


def test_layer_scales_start_at_their_own_value():
    model = nested(trained=False, init_values=1e-4).requires_grad_(False)
    model.compose()
    for block in model.model.blocks:
        torch.testing.assert_close(block.ls1.gamma, torch.full((32,), 1e-4), rtol=0, atol=1e-7)
        torch.testing.assert_close(block.norm1.weight, torch.ones(32), rtol=0, atol=1e-6)
        assert float(block.attn.qkv.bias.abs().max()) < 1e-8


def test_half_precision_and_checkpointing_give_the_same_network():
    model = nested().train()
    half = copy.deepcopy(model).bfloat16()
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    for size in model.sizes[::4]:
        with model.at(size), half.at(size), saving.at(size):
            out = model(IMAGES)
            out.sum().backward()
            saving(IMAGES).sum().backward()
            low = half(IMAGES.bfloat16())
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), out, rtol=0.1, atol=0.1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(saving.get_parameter(name).grad, parameter.grad)


def test_it_compiles():
    model = nested(wi.Sizes((1,), policy="sandwich")).train()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    for _ in range(2):
        expected, found = model(IMAGES), compiled(IMAGES)
        torch.testing.assert_close(found, expected)
        expected.sum().backward()
        found.sum().backward()
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of axes of length 1
def test_it_runs_under_ddp(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    model = nested().train()
    twin = copy.deepcopy(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(twin)
        for _ in range(4):  # of several sizes, without find_unused_parameters
            wrapped(IMAGES).sum().backward()
            model(IMAGES).sum().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name).grad, parameter.grad)


def test_it_runs_sharded(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    model = nested().train()
    twin = copy.deepcopy(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        fully_shard(twin)
        for _ in range(4):
            expected, found = model(IMAGES), twin(IMAGES)
            torch.testing.assert_close(found, expected)
            expected.sum().backward()
            found.sum().backward()
        for name, parameter in model.named_parameters():
            grad = twin.get_parameter(name).grad.full_tensor()
            torch.testing.assert_close(grad, parameter.grad)
        bundle = twin.to_bundle()
    finally:
        dist.destroy_process_group()
    for name, tensor in model.to_bundle().tensors.items():
        assert torch.equal(bundle.tensors[name], tensor)


def test_copies_in_the_middle_of_a_training_are_independent():
    """Averaged weights are such copies."""
    model = nested().train()
    for _ in range(4):
        model(IMAGES).sum().backward()
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    for _ in range(2):
        expected = model(IMAGES)
        assert torch.equal(twin(IMAGES), expected) and torch.equal(again(IMAGES), expected)
    traits = average.module.to_bundle().config.traits
    assert traits["trained_depths"] == [2, 3, 4]
    assert traits["trained_widths"] == [0.5, 0.75, 1.0]


def test_a_bundle_is_saved_and_its_sizes_fitted(tmp_path):
    bundle = nested().to_bundle(provenance={"steps": 0})
    bundle.save_pretrained(tmp_path)
    again = wi.TemplateBundle.from_pretrained(tmp_path)
    target = vit(depth=2, embed_dim=48, num_heads=6, num_classes=3)
    before = state_hash(target)
    labels = torch.tensor([0, 1, 2])
    fitted = wi.fit_scalers(
        target, again, lambda m: nn.functional.cross_entropy(m(IMAGES), labels), steps=2
    )
    assert state_hash(target) == before and fitted.config.fitted[0]["sizes"]["d"] == 48
    report = str(wi.plan_templates(target, fitted).report())
    assert "fitted scalers" in report
    wi.init_from_templates(target, fitted)
    for how in ("nested", "linear", "interpolate"):
        report = str(wi.plan_templates(target, fitted, scalers=how).report())
        assert f"{how} scalers" in report


def test_one_size_needs_no_factory():
    model = vit(**WHOLE)
    made = wi.constrain(model, wi.TemplateConfig.of(wi.anatomy(model)), sizes=wi.Sizes())
    assert made.train()(IMAGES).shape == (3, 5) and len(made.sizes) == 1


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    nested(trained=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_say_what_to_do():
    model = vit(**WHOLE)
    config = wi.TemplateConfig.of(wi.anatomy(model))

    def make(sizes, build=build, config=config):
        return wi.constrain(model, config, sizes=sizes, build=build)

    with pytest.raises(ProjectionError, match="use 'half' or 'sandwich'"):
        wi.Sizes(policy="most")
    with pytest.raises(ProjectionError, match="above 0 and up to 1"):
        wi.Sizes(widths=(2,))
    with pytest.raises(ProjectionError, match=r"depth 5 is not inside .*\[4\]"):
        make(wi.Sizes(depths=(5,)))
    with pytest.raises(ProjectionError, match="one number for each stage"):
        make(wi.Sizes(depths=((2, 2),)))
    with pytest.raises(ProjectionError, match="whole channels and heads of h=4"):
        make(wi.Sizes(widths=(0.375,)))
    with pytest.raises(ProjectionError, match="needs build="):
        make(wi.Sizes(depths=(2,)), None)
    with pytest.raises(ProjectionError, match="build the model of the size"):
        make(wi.Sizes(depths=(2,)), lambda size: vit(**WHOLE))
    with pytest.raises(ProjectionError, match=r"build= gave .*h=4"):
        make(wi.Sizes(widths=(0.5,)), lambda s: vit(depth=4, embed_dim=16, num_heads=4))
    with pytest.raises(ProjectionError, match=r"build= gave .*mlp.fc1"):
        make(wi.Sizes(widths=(0.5,)), lambda s: build(s, mlp_ratio=2))
    with pytest.raises(ProjectionError, match="head"):
        make(wi.Sizes(depths=(2,)), lambda s: build(s, num_classes=3))
    with pytest.raises(ProjectionError, match="patch"):
        make(wi.Sizes(depths=(2,)), lambda s: build(s, patch_size=4))
    with pytest.raises(ProjectionError, match="whole layers"):
        make(wi.Sizes(depths=(2,)), config=wi.TemplateConfig.layers("tleg", 32, 2))
    made = make(wi.Sizes(depths=(2,)))
    with pytest.raises(ProjectionError, match="use one of"), made.at(depth=1):
        pass
    with pytest.raises(ProjectionError, match=r"no kind covers \['ls1', 'ls2'\]"):
        wi.constrain(vit(init_values=0.1, **WHOLE), config)
    kept = wi.constrain(vit(init_values=0.1, **WHOLE), config, uncovered="keep")
    assert kept.to_bundle().config.provenance["left_out"] == ["ls1", "ls2"]
    bundle = wi.constrain(vit(), wi.TemplateConfig.wave(16)).to_bundle()
    with pytest.raises(ProjectionError, match="trained at several sizes"):
        wi.plan_templates(vit(), bundle, scalers="nested")
