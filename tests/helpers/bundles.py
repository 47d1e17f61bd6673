"""Small sound bundles, for the tests that load, save, push or break one."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from weightinit.files.config import BundleConfig
from weightinit.templates.bundle import TemplateBundle
from weightinit.templates.config import TemplateConfig
from weightinit.templates.kinds import TemplateKind

SIZES = {"d": 8, "h": 2, "k": 4, "m": 16, "n": 3, "t": 5, "c": 1, "p": 2, "q": 2}


def template_config(method="wave", *, width=8, ratio=2):
    square = TemplateKind(2, (width, width))
    kinds = {
        "attn.qkv.weight": square,
        "attn.proj.weight": square,
        "mlp.fc1.weight": square,
        "mlp.fc2.weight": square,
        "attn.qkv.bias": TemplateKind(3, (3 * width,), parts=3),
        "mlp.fc1.bias": TemplateKind(3, (ratio * width,)),
        "norm1.weight": TemplateKind(3, (width,)),
    }
    return TemplateConfig(method, width, kinds)


def make_tensors(template, sizes, *, depth, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    d, inner, m = sizes["d"], sizes["h"] * sizes["k"], sizes["m"]
    whole = {
        "attn.qkv.weight": (inner, d),
        "attn.proj.weight": (d, inner),
        "mlp.fc1.weight": (m, d),
        "mlp.fc2.weight": (d, m),
        "attn.qkv.bias": (inner,),
        "mlp.fc1.bias": (m,),
        "norm1.weight": (d,),
    }
    tensors = {}
    for kind, spec in template.kinds.items():
        tensors[f"templates.{kind}"] = draw(spec.number, *spec.shape)
        scaler = template.scaler_shape(kind, whole[kind])
        tensors[f"scalers.{kind}"] = draw(depth, spec.number, *scaler)
    for role, shape in {
        "patch.weight": (d, sizes["c"], sizes["p"], sizes["q"]),
        "patch.bias": (d,),
        "pos": (sizes["t"], d),
        "token.cls": (1, d),
        "norm.weight": (d,),
        "head.weight": (sizes["n"], d),
    }.items():
        tensors[f"outside.{role}"] = draw(*shape)
    return tensors


def make_bundle(*, depth=3, dtype=torch.float32, fitted=(), seed=0, **sizes):
    """Return a wave bundle of width 8; ``fitted`` are depths that get scalers of their own."""
    sizes = SIZES | sizes
    template = template_config()
    tensors = make_tensors(template, sizes, depth=depth, dtype=dtype, seed=seed)
    for i, deep in enumerate(fitted):
        kind = "mlp.fc1.weight"
        tensors[f"fitted.{i}.{kind}"] = torch.ones(deep, template.kinds[kind].number, 4, 2)
    config = BundleConfig(
        kind="templates",
        method="wave",
        options=template.to_dict(),
        sizes=sizes,
        depth=depth,
        licence="Apache-2.0",
        traits={"pool": "token", "prefix_tokens": 1},
        fitted=tuple({"depth": deep, "sizes": {"d": 2 * sizes["d"]}} for deep in fitted),
        provenance={"ancestor": "org/ancestor", "steps": 10, "command": "train-templates"},
    )
    return TemplateBundle(config, tensors)


def nbytes(bundle):
    return sum(math.prod(t.shape) * t.element_size() for t in bundle.tensors.values())


def files_of(bundle, folder):
    """Save a bundle, and return its files as bytes."""
    bundle.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(folder):
    """Return every file below a folder, hidden ones included, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def assert_equal(one, other):
    """Two bundles hold the same tensors, dtypes included."""
    assert set(one.tensors) == set(other.tensors)
    for name, tensor in one.tensors.items():
        assert other.tensors[name].dtype == tensor.dtype
        assert torch.equal(other.tensors[name], tensor)
