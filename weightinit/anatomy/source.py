"""The parameters of a model or state dict: names without wrappers, shapes, ties."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weightinit.errors import AnatomyError
from weightinit.text import first

__all__ = ["ModelTensors", "TensorInfo", "read"]

# Wrappers that stand anywhere in a name, and attributes under which others keep a whole model.
_INNER = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_OUTER = tuple(
    "module _orig_mod model base_model backbone visual trunk timm_model net student teacher "
    "vit deit bert roberta transformer".split()
)
_PREFIX = re.compile(rf"(?:(?:{'|'.join(_OUTER)})\.)+")
_PACKED = ("_packed_params", "weight_g", "weight_v")
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model: its name, the name without wrappers, shape and other names."""

    name: str
    key: str
    shape: tuple[int, ...]
    tied: tuple[str, ...]
    floating: bool


@dataclass(frozen=True)
class ModelTensors:
    """The parameters of a model, and the module inside its wrappers (None for a state dict)."""

    entries: tuple[TensorInfo, ...]
    module: nn.Module | None


def strip(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers."""
    for part in _INNER:
        if part in name:
            name = name.replace(part, "")
    prefix = _PREFIX.match(name)
    return name[prefix.end() :] if prefix else name


def unwrap(module: nn.Module) -> nn.Module:
    """Return the model inside wrappers such as DDP, torch.compile or a user's own class."""
    while True:
        children = module._modules
        inner = next((children[name] for name in _OUTER if children.get(name) is not None), None)
        if inner is None or not isinstance(inner, nn.Module):
            return module
        module = inner


def read(source: nn.Module | Mapping[str, Tensor]) -> ModelTensors:
    """Return the parameters of a module or state dict, each tensor once; raise on other weights."""
    if isinstance(source, nn.Module):
        named, refused = _walk(source)
        module = unwrap(source)
        identity = id
    elif isinstance(source, Mapping):
        others = [str(name) for name, x in source.items() if not isinstance(x, Tensor)]
        if others:
            raise AnatomyError(
                f"{first(others)}: no tensors; pass the state dict itself, not the file around it"
            )
        named, refused = [(str(name), x) for name, x in source.items()], []
        module = None
        identity = _storage
    else:
        raise AnatomyError(
            f"a {type(source).__name__} has no anatomy: pass an nn.Module or its state dict"
        )
    names: dict[object, list[str]] = {}
    kept: list[tuple[Tensor, list[str]]] = []
    for name, tensor in named:
        same = names.setdefault(identity(tensor), [])
        same.append(name)
        if len(same) == 1:
            kept.append((tensor, same))
    entries, seen = [], {}
    for tensor, (name, *tied) in kept:
        key = strip(name)
        fault = _fault(name, tensor, module is not None)
        if fault:
            refused.append(f"{name} ({fault})")
        elif seen.setdefault(key, name) != name:
            refused.append(f"{name} (of the same name as {seen[key]} but for its prefix)")
        else:
            floating = tensor.is_floating_point()
            entries.append(TensorInfo(name, key, tuple(tensor.shape), tuple(tied), floating))
    if refused:
        raise AnatomyError(
            f"these are no plain floating-point weights: {first(refused)}. Remove the "
            "parametrizations (torch.nn.utils.parametrize.remove_parametrizations), run lazy "
            "modules once, load the model unquantized, or pass one model at a time"
        )
    return ModelTensors(tuple(entries), module)


def _storage(tensor: Tensor) -> object:
    """Return what two tied entries of a state dict have in common."""
    if tensor.is_meta or tensor.numel() == 0 or type(tensor) not in (Tensor, nn.Parameter):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _walk(module: nn.Module) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """Return all named parameters, repeated ones included, and what is no plain weight.

    It gives the names of ``named_parameters(remove_duplicate=False)`` in a third of its time.
    """
    named: list[tuple[str, Tensor]] = []
    refused: list[str] = []
    pending: list[tuple[str, nn.Module]] = [("", module)]
    while pending:
        prefix, current = pending.pop()
        for name, parameter in current._parameters.items():
            if parameter is not None:
                named.append((prefix + name, parameter))
        if type(current).__module__.startswith(_QUANTIZED):
            refused.append(f"{prefix.rstrip('.')} ({type(current).__name__})")
        children = current._modules
        if children:
            if "parametrizations" in children:
                refused.append(f"{prefix}parametrizations")
            pending.extend(
                (f"{prefix}{name}.", child)
                for name, child in reversed(children.items())
                if child is not None
            )
    return named, refused


def _fault(name: str, tensor: Tensor, is_parameter: bool) -> str:
    """Return why a tensor is no plain weight, or an empty string."""
    if is_lazy(tensor):
        return "uninitialized"
    if "parametrizations." in name or name.endswith(_PACKED):
        return "parametrized"
    quantized = tensor.is_quantized or type(tensor).__module__.startswith("torchao")
    # Integer entries of a state dict may be buffers: the rules will tell.
    if quantized or (is_parameter and not tensor.is_floating_point()):
        return f"quantized, {str(tensor.dtype).removeprefix('torch.')}"
    return ""
