"""Small models and bundles of random weights, and hashes of what must not change."""

import hashlib

import timm
import torch

from weightinit.anatomy import anatomy
from weightinit.files.config import BundleConfig
from weightinit.inherit.outside import collect
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import kind_roles

AUXILIARY = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 5,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "class_token": False,
    "global_pool": "avg",
    "fc_norm": False,
}


def vit(**changes):
    """A tiny timm ViT, the auxiliary model's size unless told otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.models.VisionTransformer(**(AUXILIARY | changes)).eval()


def make_bundle(method="wave", *, seed=0, dtype=torch.float64, **changes):
    """A bundle of random templates for `vit()`, as a training would leave it."""
    model = vit(**changes).to(dtype)
    target = anatomy(model)
    width = target.sizes["d"]
    config = (
        TemplateConfig.wave(width)
        if method == "wave"
        else TemplateConfig.layers(method, width, {"share": 1}.get(method, 2))
    ).restricted_to(target)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    tensors = {}
    for kind, spec in config.kinds.items():
        tensors[f"templates.{kind}"] = draw(spec.number, *spec.shape) * 0.2
        if method == "wave":
            piece = target.blocks[0][kind_roles(kind)[0]]
            shape = config.scaler_shape(kind, piece.size)
            tensors[f"scalers.{kind}"] = draw(target.depth, spec.number, *shape)
    tensors |= {
        f"outside.{k}": draw(*v.shape)
        for k, v in collect(target, dict(model.named_parameters())).items()
    }
    return TemplateBundle(
        BundleConfig(
            kind="templates",
            method=method,
            options=config.to_dict(),
            sizes=dict(target.sizes),
            depth=target.depth,
            licence="Apache-2.0",
            traits=target.traits.to_dict() | {"family": target.family},
        ),
        {k: v.to(torch.float32) for k, v in tensors.items()},
    )


def draw(*shape, seed=0):
    """A float64 tensor of normal draws."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def state_hash(module):
    """Everything that must not change: values, buffers, identities, flags and mode."""
    digest = hashlib.sha256()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}/{id(tensor)}/{tensor.requires_grad}/{tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(str([m.training for m in module.modules()]).encode())
    return digest.hexdigest()


def bundle_hash(bundle):
    digest = hashlib.sha256()
    for name, tensor in sorted(bundle.tensors.items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
