"""One rank of the sharded tests: builds differently seeded models and initialises them."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import weightinit as wi
from helpers.models import make_bundle, vit
from weightinit.errors import ProjectionError

OPTIONS = {"embed_dim": 32, "num_heads": 4, "num_classes": 9}


def full(parameter):
    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    bundle = make_bundle()
    plain = wi.init_from_templates(vit(**OPTIONS), bundle)
    expected = {name: value.detach() for name, value in plain.named_parameters()}

    def check(model, what):
        for name, parameter in model.named_parameters():
            key = name.removeprefix("module.").replace("_orig_mod.", "")
            assert torch.equal(full(parameter), expected[key]), (what, name)

    # FSDP2 over models that every rank drew for itself.
    model = vit(**OPTIONS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(rank + 1.0)
    sharded = shard(model, mesh)
    kept = {name: id(p) for name, p in sharded.named_parameters()}
    assert wi.init_from_templates(sharded, bundle) is sharded
    assert {name: id(p) for name, p in sharded.named_parameters()} == kept
    check(sharded, "fsdp2")
    x = torch.ones(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(sharded(x), plain(x))

    # A forward without a backward, as of an accuracy before, leaves the root gathered.
    with torch.no_grad():
        sharded(x)
    wi.init_from_templates(sharded, bundle, scalers="linear")
    with torch.no_grad():
        sharded(x)
    plan = wi.plan_templates(sharded, bundle)
    with torch.no_grad():
        sharded(x)
    plan.commit()
    check(sharded, "fsdp2 after a forward")

    # FSDP2 on meta: sharded first, materialised by the commit; an optimizer keeps its parameters.
    with torch.device("meta"):
        meta = vit(**OPTIONS)
    meta = shard(meta, mesh)
    optimizer = torch.optim.SGD(meta.parameters(), lr=0.0)
    kept = {name: id(p) for name, p in meta.named_parameters()}
    for name, parameter in meta.named_parameters():
        parameter.mine = name
    wi.init_from_templates(meta, bundle)
    assert {name: id(p) for name, p in meta.named_parameters()} == kept
    assert all(p.mine == name for name, p in meta.named_parameters())
    check(meta, "fsdp2 on meta")
    meta(x).sum().backward()
    moved = meta.head.weight.to_local().detach().clone()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert not torch.equal(meta.head.weight.to_local(), moved)
    wi.init_from_templates(meta, bundle)
    check(meta, "fsdp2 on meta, again")

    # A plan that was made before the model was sharded writes nothing.
    stale = vit(**OPTIONS)
    plan = wi.plan_templates(stale, bundle)
    shard(stale, mesh)
    try:
        plan.commit()
    except ProjectionError as error:
        assert "new plan" in str(error)
    else:
        raise AssertionError("a stale plan was committed")
    with torch.no_grad():
        torch.testing.assert_close(meta(x), plain(x))

    # A user's own attribute may be called as DDP's is.
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    wrapped = Wrapper(vit(**OPTIONS))
    shard(wrapped.module, mesh)
    wi.init_from_templates(fully_shard(wrapped, mesh=mesh), bundle)
    check(wrapped.module, "fsdp2 in a wrapper")

    # Initialised first, sharded after.
    check(shard(wi.init_from_templates(vit(**OPTIONS), bundle), mesh), "init, then fsdp2")

    # DDP, and a compiled model inside it.
    ddp = torch.nn.parallel.DistributedDataParallel(vit(**OPTIONS))
    wi.init_from_templates(ddp, bundle)
    check(ddp, "ddp")
    compiled = torch.nn.parallel.DistributedDataParallel(
        torch.compile(vit(**OPTIONS), backend="eager")
    )
    wi.init_from_templates(compiled, bundle)
    check(compiled, "ddp of a compiled model")

    # A fault on the way leaves every shard as it was.
    import torch.distributed.checkpoint.state_dict as dcp

    sharded = shard(vit(**OPTIONS), mesh)
    before = {n: (id(p), p.to_local().detach().clone()) for n, p in sharded.named_parameters()}
    real = dcp.set_model_state_dict

    def faulty(model, state, **kwargs):
        half = dict(list(state.items())[: len(state) // 2])
        real(model, half, **kwargs)
        raise KeyboardInterrupt

    dcp.set_model_state_dict = faulty
    try:
        wi.init_from_templates(sharded, bundle)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the fault was swallowed")
    dcp.set_model_state_dict = real
    for name, parameter in sharded.named_parameters():
        assert id(parameter) == before[name][0], name
        assert torch.equal(parameter.to_local(), before[name][1]), name
    broken = make_bundle()
    broken.tensors["templates.mlp.fc2.weight"][-1, -1, -1] = float("nan")
    try:
        wi.init_from_templates(sharded, broken)
    except ProjectionError:
        pass
    dist.barrier()
    dist.destroy_process_group()
    print(f"rank {rank} of {world} is done")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
