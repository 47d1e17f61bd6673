import copy
import pickle
from dataclasses import replace

import pytest
import torch
from helpers.models import make_bundle, state_hash, vit
from timm.models.eva import Eva
from torch import nn

import weightinit as wi
from weightinit.anatomy import anatomy
from weightinit.errors import ProjectionError
from weightinit.templates.compose import Composer
from weightinit.templates.scalers import closed_form, linear_scalers

LINEARS = {
    "attn.qkv": "attn.qkv.weight",
    "attn.proj": "attn.proj.weight",
    "mlp.fc1": "mlp.fc1.weight",
    "mlp.fc2": "mlp.fc2.weight",
}
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def constrained(method="wave", width=16, *, seed=0, **changes):
    model = vit(**changes)
    config = (
        wi.TemplateConfig.wave(width)
        if method == "wave"
        else wi.TemplateConfig.layers(method, width, {"tleg": 2, "share": 1}[method])
    )
    return wi.constrain(model, config, generator=torch.Generator().manual_seed(seed))


def key(kind):
    return kind.replace(".", "_")


def kron(templates, scalers):
    """Eq. 4 in float64, one product at a time, blocks of scaled templates side by side."""
    parts = zip(templates.double(), scalers.double(), strict=True)
    return sum(torch.kron(s, t) for t, s in parts)


@pytest.mark.parametrize("size", [{}, {"embed_dim": 32, "num_heads": 4}])
def test_blocks_are_the_kronecker_sums(size):
    module = constrained(**size)
    module(IMAGES)
    for index, block in enumerate(module.model.blocks):
        for path, kind in LINEARS.items():
            layer = block.get_submodule(path)
            t, s = (getattr(module, n)[key(kind)] for n in ("templates", "scalers"))
            s = s[index].detach()
            expected = kron(t.detach(), s)
            torch.testing.assert_close(layer.weight.double(), expected, rtol=0, atol=1e-6)
        bias = module.templates["attn_qkv_bias"].detach().double().unflatten(1, (3, 16))
        s = module.scalers["attn_qkv_bias"][index].detach().double()
        expected = torch.cat([kron(bias[:, i], s) for i in range(3)])
        torch.testing.assert_close(block.attn.qkv.bias.double(), expected, rtol=0, atol=1e-6)


def test_start_values():
    module = constrained(embed_dim=32, num_heads=4, depth=6, width=32).requires_grad_(False)
    module.compose()
    for block in module.model.blocks:
        for path in LINEARS:
            assert float(block.get_submodule(path).weight.std()) == pytest.approx(0.02, rel=0.15)
            assert float(block.get_submodule(path).bias.abs().max()) < 1e-8
        for norm in (block.norm1, block.norm2):
            torch.testing.assert_close(norm.weight, torch.ones(32), rtol=0, atol=1e-6)
            assert float(norm.bias.abs().max()) < 1e-8


@pytest.mark.parametrize("size", [{}, {"embed_dim": 32, "num_heads": 4}])
def test_every_template_and_scaler_has_a_gradient(size):
    module = constrained(**size)
    module(IMAGES).square().sum().backward()
    for name, parameter in module.named_parameters():
        if name.startswith(("templates.", "scalers.")):
            rows = parameter.grad.flatten(2 if name.startswith("scalers.") else 1).abs().sum(-1)
            assert bool((rows > 0).all()), name


def test_gradients_against_finite_differences():
    module = constrained().double()
    images = IMAGES.double()

    def loss():
        return module(images).square().sum()

    loss().backward()
    for held in (module.templates, module.scalers):
        for kind in ("attn_qkv_weight", "mlp_fc2_weight", "attn_qkv_bias", "norm1_weight"):
            value = held[kind]
            at = value.numel() // 3
            step = 1e-5
            with torch.no_grad():
                value.view(-1)[at] += step
                high = loss()
                value.view(-1)[at] -= 2 * step
                low = loss()
                value.view(-1)[at] += step
            slope = float((high - low) / (2 * step))
            assert float(value.grad.view(-1)[at]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_the_state_dict_holds_templates_scalers_and_the_rest():
    module = constrained()
    module(IMAGES)
    names = set(module.state_dict())
    kinds = {key(kind) for kind in module.config.kinds}
    rest = {n for n in vit().state_dict() if not n.startswith("blocks.")}
    assert names == {f"{h}.{k}" for h in ("templates", "scalers") for k in kinds} | {
        f"model.{n}" for n in rest
    }
    assert names == {n for n, _ in module.named_parameters()}
    assert "attn_rpe_q_weight" not in kinds


def test_weights_are_the_block_parameters_that_kinds_cover():
    config = wi.TemplateConfig.wave(16)
    kinds = {kind: config.kinds[kind] for kind in ("attn.qkv.weight", "norm1.bias")}
    module = wi.constrain(vit(), replace(config, kinds=kinds))
    names = {f"blocks.{i}.{n}" for i in range(3) for n in ("attn.qkv.weight", "norm1.bias")}
    assert set(module.weights()) == names
    held = {name for name, _ in module.model.named_parameters()}
    assert held == {name for name, _ in vit().named_parameters()} - names
    module.depth_used = 2
    assert set(module.weights()) == {name for name in names if "blocks.2" not in name}


def test_activation_checkpointing_gives_the_same_gradients():
    """It composes nothing anew in the backward pass, but reads the weights again."""
    plain, saving = constrained(), constrained()
    saving.model.set_grad_checkpointing(True)
    for module in (plain, saving):
        module.train()(IMAGES).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(saving.get_parameter(name).grad, parameter.grad)


def test_a_copy_after_a_step_is_independent():
    module = constrained()
    expected = module(IMAGES)
    expected.sum().backward()
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(IMAGES), expected, rtol=0, atol=0)
    with torch.no_grad():
        twin.templates["mlp_fc1_weight"] += 1
    assert not torch.equal(twin(IMAGES), expected)
    torch.testing.assert_close(module(IMAGES), expected, rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(again(IMAGES), expected, rtol=0, atol=0)


def test_the_given_model_is_left_as_it_was():
    model = vit()
    before = state_hash(model)
    module = wi.constrain(model, wi.TemplateConfig.wave(16))
    module(IMAGES).sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert state_hash(model) == before


def test_start_values_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (constrained(seed=s).templates["mlp_fc1_weight"] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["wave", "tleg", "share"])
def test_a_bundle_gives_the_same_function_back(method):
    module = constrained(method).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    bundle = module.to_bundle(provenance={"steps": 3})
    model = wi.init_from_templates(vit(), bundle)
    torch.testing.assert_close(model(IMAGES), module(IMAGES), rtol=1e-4, atol=1e-5)
    assert bundle.config.provenance["steps"] == 3 and bundle.config.depth == 3


def test_a_bundle_in_half_precision():
    bundle = constrained().to_bundle(dtype=torch.float16)
    assert {t.dtype for t in bundle.tensors.values()} == {torch.float16}


@pytest.mark.parametrize("method", ["tleg", "share"])
def test_closed_forms_train_templates_alone(method):
    module = constrained(method)
    out = module(IMAGES)
    out.sum().backward()
    assert not any("scalers" in name for name, _ in module.named_parameters())
    assert not any("scalers" in name for name in module.state_dict())
    t = module.templates["mlp_fc1_weight"]
    share = closed_form(method, len(t), 3).float()
    for index, block in enumerate(module.model.blocks):
        expected = torch.einsum("t,tij->ij", share[index], t)
        torch.testing.assert_close(block.mlp.fc1.weight, expected)
        torch.testing.assert_close(block.norm1.weight, torch.ones(16))
        assert not bool(block.mlp.fc1.bias.any())


def test_train_scalers_freezes_the_rest():
    module = wi.constrain(vit(), wi.TemplateConfig.wave(16), train="scalers")
    module(IMAGES).sum().backward()
    trained = {n for n, p in module.named_parameters() if p.grad is not None}
    assert trained == {f"scalers.{key(k)}" for k in module.config.kinds}


def test_given_templates_and_scalers_are_taken(bundle):
    module = wi.constrain(
        vit(),
        bundle.template_config,
        templates={k: bundle.tensors[f"templates.{k}"] for k in bundle.template_config.kinds},
        scalers={k: bundle.tensors[f"scalers.{k}"] for k in bundle.template_config.kinds},
    )
    again = module.to_bundle()
    for name, tensor in bundle.tensors.items():
        if not name.startswith("outside."):
            assert torch.equal(again.tensors[name], tensor)


def test_vectors_are_not_decayed():
    names = constrained().no_weight_decay()
    assert {"templates.norm1_weight", "scalers.mlp_fc1_bias", "model.pos_embed"} <= names
    assert "templates.mlp_fc1_weight" not in names


def test_scalers_are_interpolated_over_depth():
    module = constrained(depth=4).eval()
    module.depth_used = 3
    s = module.scalers["mlp_fc1_weight"].detach()
    expected = [s[0], (s[1] + s[2]) / 2, s[3]]
    module.compose()
    for block, scaler in zip(module.model.blocks, expected, strict=False):
        whole = kron(module.templates["mlp_fc1_weight"].detach(), scaler)
        torch.testing.assert_close(block.mlp.fc1.weight.double(), whole, rtol=0, atol=1e-6)


def test_parameters_of_no_kind_stay_and_are_listed():
    module = constrained(init_values=0.1)
    module(IMAGES).sum().backward()
    assert module.model.blocks[0].ls1.gamma.grad is not None
    left = module.to_bundle().config.provenance["left_out"]
    assert left == ["ls1", "ls2"]


def test_it_runs_under_ddp(tmp_path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    module = constrained()
    module(IMAGES).sum().backward()
    expected = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.zero_grad()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        DistributedDataParallel(module)(IMAGES).sum().backward()
    finally:
        dist.destroy_process_group()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_parameters_stored_transposed_are_composed_too():
    """GPT-2's Conv1D stores in x out, and q, k and v side by side in columns."""
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2Model(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=11)
    )
    module = wi.constrain(model, wi.TemplateConfig.wave(16)).requires_grad_(False)
    module.compose()
    t, s = (getattr(module, n)["attn_qkv_weight"] for n in ("templates", "scalers"))
    for index, block in enumerate(module.model.h):
        expected = kron(t, s[index]).T.float()
        torch.testing.assert_close(block.attn.c_attn.weight, expected, rtol=0, atol=1e-6)


def test_errors_say_what_to_do():
    wave = wi.TemplateConfig.wave(16)
    with pytest.raises(ProjectionError, match="use 'both' or 'scalers'"):
        wi.constrain(vit(), wave, train="templates")
    with pytest.raises(ProjectionError, match="build it on a device"):
        wi.constrain(vit().to("meta"), wave)
    with pytest.raises(ProjectionError, match=r"templates of norm1.weight have shape"):
        wi.constrain(vit(), wave, templates={"norm1.weight": torch.ones(4, 7)})
    swiglu = Eva(
        img_size=8,
        patch_size=4,
        in_chans=1,
        embed_dim=16,
        depth=2,
        num_heads=2,
        swiglu_mlp=True,
        num_classes=3,
    )
    with pytest.raises(ProjectionError, match="Leave its kind out of the config"):
        wi.constrain(swiglu, wave)
    uneven = vit()
    uneven.blocks[1].mlp.fc1 = nn.Linear(16, 64, bias=False)
    with pytest.raises(ProjectionError, match="all blocks must have it in one size"):
        wi.constrain(uneven, wave)
    uneven.blocks[1].mlp.fc1 = nn.Linear(16, 16)
    uneven.blocks[1].mlp.fc2 = nn.Linear(16, 16)
    with pytest.raises(wi.WeightInitError):
        wi.constrain(uneven, wave)


def test_a_random_bundle_of_another_head_dim(bundle):
    """The heads of templates and model may differ, as in init_from_templates."""
    model = wi.init_from_templates(vit(num_heads=4), bundle).eval()
    composer = Composer.of(bundle, anatomy(model))
    module = wi.constrain(
        model,
        bundle.template_config,
        templates={k: bundle.tensors[f"templates.{k}"] for k in bundle.template_config.kinds},
        scalers=composer.start(bundle),
        head_dim=composer.head_dim,
    )
    torch.testing.assert_close(module(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    assert make_bundle().config.sizes["k"] != composer.target.sizes["k"]


@pytest.mark.parametrize("size", [{}, {"embed_dim": 32, "num_heads": 4}])
def test_scalers_may_start_at_equation_b1(size):
    """Norms are 1 and biases 0 all the same, and everything learns by the second step."""
    module = wi.constrain(vit(depth=4, **size), wi.TemplateConfig.wave(16), scalers="linear")
    for value in module.scaler_values().values():
        expected = linear_scalers(value.shape[1], tuple(value.shape[2:]), 4, epsilon=0.0)
        torch.testing.assert_close(value, expected.float(), rtol=0, atol=1e-4)
    with torch.no_grad():
        module.compose()
    for block in module.model.blocks:
        width = block.norm1.weight.shape
        torch.testing.assert_close(block.norm1.weight, torch.ones(width), rtol=0, atol=1e-4)
        assert float(block.attn.qkv.bias.abs().max()) < 1e-6
    seen = dict.fromkeys((n for n, _ in module.named_parameters()), False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        module(IMAGES).square().sum().backward()
        for name, parameter in module.named_parameters():
            seen[name] |= bool(parameter.grad.any())
        optimizer.step()
        optimizer.zero_grad()
    assert all(seen.values())
    with pytest.raises(ProjectionError, match="twice as many templates as places"):
        wide = vit(embed_dim=48, num_heads=6)
        wi.constrain(wide, wi.TemplateConfig.wave(16), scalers="linear")
    bundle = module.to_bundle()
    target = wi.init_from_templates(vit(depth=2, **size), bundle, scalers="linear")
    assert torch.isfinite(target(IMAGES)).all()


def test_a_constant_parameter_starts_at_its_own_value():
    model = vit(init_values=1e-3)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.fc1.bias.fill_(0.25)
            block.norm2.weight.fill_(0.5)
    module = wi.constrain(model, wi.TemplateConfig.of(anatomy(model))).requires_grad_(False)
    module.compose()
    for block in module.model.blocks:
        assert float(block.attn.proj.weight.abs().max()) < 1e-7
        for value, start in (
            (block.mlp.fc1.bias, 0.25),
            (block.norm2.weight, 0.5),
            (block.ls2.gamma, 1e-3),
        ):
            torch.testing.assert_close(value, torch.full_like(value, start), rtol=0, atol=1e-6)
