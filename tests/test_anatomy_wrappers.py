import copy

import pytest
import timm
import torch
from torch import nn

from weightinit.anatomy import anatomy


def tiny(**changes):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**(sizes | {"num_classes": 5} | changes))


def in_a_class(model, *path):
    for name in reversed(path):
        outer = nn.Module()
        setattr(outer, name, model)
        model = outer
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: in_a_class(model, "module"),
        lambda model: in_a_class(model, "backbone"),
        lambda model: in_a_class(model, "visual", "trunk"),
        lambda model: in_a_class(model, "timm_model"),
        lambda model: in_a_class(model, "module", "_orig_mod", "backbone"),
        torch.compile,
        lambda model: in_a_class(torch.compile(model), "module"),
        nn.DataParallel,
        copy.deepcopy,
    ],
)
def test_wrappers_and_prefixes(wrap):
    plain, model = anatomy(tiny()), wrap(tiny())
    for source in (model, model.state_dict()):
        seen = anatomy(source, sizes={} if source is model else {"h": 3})
        assert [spec.key for spec in seen.specs] == [spec.name for spec in plain.specs]
        assert [spec.name for spec in seen.specs] == [name for name, _ in model.named_parameters()]
        assert seen.sizes == plain.sizes
        assert seen.traits.pos_prefix == 1
        assert seen.spec("head.weight") == seen.spec(seen.specs[-2].name)


def test_compiled_and_checkpointed_blocks():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny()
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    seen = anatomy(model)
    assert [spec.key for spec in seen.specs] == [spec.name for spec in anatomy(tiny()).specs]
    assert seen.spec("blocks.1.norm1.weight").name == (
        "blocks.1._checkpoint_wrapped_module.norm1.weight"
    )


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_distributed_models(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = anatomy(tiny())
    assert anatomy(nn.parallel.DistributedDataParallel(tiny())).sizes == plain.sizes
    sharded = tiny()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    assert anatomy(sharded).specs == plain.specs
