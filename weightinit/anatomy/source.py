"""The parameters of a model or state dict: names without wrappers, shapes, ties."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weightinit.errors import AnatomyError
from weightinit.text import first

__all__ = ["TensorInfo", "read", "refuse", "shorten", "strip", "unwrap"]

_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# DDP's "module" stands in front; peft keeps an adapted layer as its "base_layer".
_WRAPPED = re.compile(rf"^(?:(?:module|_orig_mod)\.)+|\b(?:{'|'.join(_WRAPPERS[1:])}|base_layer)\.")
_PACKED = ("_packed_params", "weight_g", "weight_v")
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a model: its name, the name without wrappers, shape and other names.

    ``fault`` says why it is no plain weight, if it is none.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    tied: tuple[str, ...]
    floating: bool
    fault: str = ""


def strip(name: str) -> str:
    """Return a parameter's name without the names of wrappers: DDP, torch.compile, FSDP, peft."""
    return _WRAPPED.sub("", name)


def shorten(name: str, prefix: str) -> str:
    """Return a name without as much of a prefix as stands in front of it.

    Examples:
        >>> shorten("model.vit.norm.bias", "model.vit."), shorten("model.head.bias", "model.vit.")
        ('norm.bias', 'head.bias')
    """
    for part in prefix.split(".")[:-1]:
        if not name.startswith(f"{part}."):
            break
        name = name[len(part) + 1 :]
    return name


def unwrap(module: nn.Module, prefix: str = "") -> nn.Module:
    """Return the module of a prefix such as ``"model.encoder."``, inside its wrappers."""
    parts = prefix.split(".")[:-1]
    while True:
        children = module._modules
        if parts and parts[0] in children:
            inner = children[parts.pop(0)]
        else:
            inner = next((x for x in map(children.get, _WRAPPERS) if x is not None), None)
        if inner is None:
            return module
        module = inner


def read(source: nn.Module | Mapping[str, Tensor], *, lenient: bool = False) -> list[TensorInfo]:
    """Return the parameters of a module or state dict, each tensor once.

    Weights of another form raise, or are among them if ``lenient``.
    """
    if isinstance(source, nn.Module):
        named, refused = _walk(source)
        identity = id
    elif isinstance(source, Mapping):
        others = [str(name) for name, x in source.items() if not isinstance(x, Tensor)]
        if others:
            raise AnatomyError(
                f"{first(others)}: no tensors; pass the state dict itself, not the file around it"
            )
        named, refused = [(str(name), x) for name, x in source.items()], []
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
    entries = []
    for tensor, (name, *tied) in kept:
        fault = _fault(name, tensor, identity is id)
        shape = () if is_lazy(tensor) or tensor.is_nested else tuple(tensor.shape)
        floating = tensor.is_floating_point()
        entries.append(TensorInfo(name, strip(name), shape, tuple(tied), floating, fault))
    refuse([*refused, *(f"{x.name} ({x.fault})" for x in entries if x.fault and not lenient)])
    return entries


def refuse(faults: Sequence[str]) -> None:
    """Raise AnatomyError if there are tensors that are no plain weights, each with its fault."""
    if faults:
        raise AnatomyError(
            f"these are no plain floating-point weights: {first(faults)}. Remove the "
            "parametrizations (torch.nn.utils.parametrize.remove_parametrizations), run lazy "
            "modules once, or load the model unquantized"
        )


def _storage(tensor: Tensor) -> object:
    """Return what two tied entries of a state dict have in common."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not _form(tensor)
    if not plain or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _walk(
    module: nn.Module, prefix: str = "", above: tuple[nn.Module, ...] = ()
) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """Return all named parameters, repeated ones included, and what is no plain weight."""
    if module in above:
        raise AnatomyError(
            f"the module {prefix.rstrip('.')} contains itself: keep the reference outside of "
            "torch's register, as in object.__setattr__(module, name, value)"
        )
    named: list[tuple[str, Tensor]] = []
    refused: list[str] = []
    named += [(prefix + name, x) for name, x in module._parameters.items() if x is not None]
    if type(module).__module__.startswith(_QUANTIZED):
        refused.append(f"{prefix.rstrip('.')} ({type(module).__name__})")
    for name, child in module._modules.items():
        if child is not None:
            inner = _walk(child, f"{prefix}{name}.", (*above, module))
            named += inner[0]
            refused += inner[1]
    return named, refused


def _form(tensor: Tensor) -> str:
    """Return the form of a tensor that has no strides, or an empty string."""
    return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.strided")


def _fault(name: str, tensor: Tensor, is_parameter: bool) -> str:
    """Return why a tensor is no plain weight, or an empty string."""
    if is_lazy(tensor):
        return "uninitialized"
    if form := _form(tensor):
        return form
    if "parametrizations." in name or name.endswith(_PACKED):
        return "parametrized"
    quantized = tensor.is_quantized or type(tensor).__module__.startswith("torchao")
    # Integer entries of a state dict may be buffers: the rules will tell.
    if quantized or (is_parameter and not tensor.is_floating_point()):
        return f"quantized, {str(tensor.dtype).removeprefix('torch.')}"
    return ""
