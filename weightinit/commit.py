"""Values into the parameters of a model, in place and all or nothing."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from weightinit.errors import ProjectionError

__all__ = ["overlapping", "parameters_of", "sharing", "write"]


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's parameters by name; those that FSDP2 holds gathered are sharded again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):  # a forward without a backward leaves the root gathered
            module.reshard()
    return dict(model.named_parameters())


def sharing(parameters: Mapping[str, Tensor], readonly: Iterable[Tensor]) -> list[str]:
    """Return the names of those parameters whose storage is one of ``readonly``'s."""
    held = {_local(tensor).untyped_storage().data_ptr() for tensor in readonly if _plain(tensor)}
    return [
        name
        for name, tensor in parameters.items()
        if _plain(tensor) and _local(tensor).untyped_storage().data_ptr() in held - {0}
    ]


def overlapping(parameters: Mapping[str, Tensor]) -> list[str]:
    """Return the names of two parameters that overlap in memory, if there are any."""
    spans = []
    for name, parameter in parameters.items():
        if _plain(parameter) and (local := _local(parameter)).numel() and local.data_ptr():
            steps = sum((n - 1) * s for n, s in zip(local.shape, local.stride(), strict=True))
            start = local.data_ptr()
            spans.append((start, start + (steps + 1) * local.element_size(), name))
    for (_, end, one), (start, _, other) in pairwise(sorted(spans)):
        if start < end:
            return [one, other]
    return []


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own that can be told from other's."""
    return not tensor.is_meta and tensor.layout == torch.strided


def write(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> None:
    """Write values by name; after any exception the model is as it was, bit for bit.

    Parameters on meta are materialised, on the CPU or the device of their mesh, and keep identity,
    class, attributes, hooks and memory format; their buffers are rebuilt. Ctrl-C is held back: what
    was written is undone, or, where all was, it is raised afterwards.
    """
    sharded = [p for p in parameters.values() if isinstance(p, DTensor)]
    device = sharded[0].device_mesh.device_type if sharded else "cpu"
    meta = {name: None for name in values if parameters[name].is_meta}
    backup: dict[str, Tensor] = {}
    swapped: list[tuple[Tensor, Tensor]] = []
    with _interrupts_held() as check, _materialised_buffers(model, bool(meta), device):
        try:
            with torch.no_grad():
                for name in meta:
                    old = parameters[name]
                    if sharded:  # written below, with all others
                        fresh = torch.empty_like(old, device=device)
                    else:
                        fresh = _laid_out(values[name].to(old.dtype), old)
                    fresh.requires_grad_(old.requires_grad)
                    swapped.append((old, fresh))
                    _swap(old, fresh)
                    check()
                for name in [name for name in values if name not in meta]:
                    backup[name] = _local(parameters[name]).clone()
                    check()
                if sharded:
                    _write_shards(model, parameters, values)
                else:
                    for name in backup:
                        parameters[name].copy_(values[name])
                        check()
        except BaseException:
            with torch.no_grad():
                for name, old in backup.items():
                    _local(parameters[name]).copy_(old)
                for parameter, fresh in swapped:
                    if fresh.is_meta:
                        _swap(parameter, fresh)
            raise


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Return values in the memory format of another tensor: the same tensor where it has that."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like, device=value.device).copy_(value)


def _swap(parameter: Tensor, other: Tensor) -> None:
    """Exchange the values of two tensors, and nothing else that hangs on them."""
    # torch.utils.swap_tensors exchanges classes and attributes too, and refuses weak references.
    torch._C._swap_tensor_impl(parameter, other)
    if isinstance(parameter, DTensor):
        for slot in ("_local_tensor", "_spec"):
            ours, theirs = getattr(parameter, slot), getattr(other, slot)
            setattr(parameter, slot, theirs)
            setattr(other, slot, ours)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if (held := getattr(parameter, hooks)) is not None:
            setattr(parameter, hooks, held)  # tells the new values of them


def _write_shards(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> None:
    """Write full tensors into a model with DTensor parameters: the same bits on every mesh."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state: dict[str, Any] = {
        _unwrapped(name, model): value.to(parameters[name].dtype) for name, value in values.items()
    }
    options = StateDictOptions(full_state_dict=True, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        unexpected = set_model_state_dict(model, state, options=options).unexpected_keys
    if unexpected:
        raise ProjectionError(
            f"torch.distributed does not know {unexpected}: initialise the model before wrapping it"
        )


def _unwrapped(name: str, module: nn.Module) -> str:
    """Return a parameter's name as torch.distributed has it: without what wrappers add."""
    *path, last = name.split(".")
    kept = []
    for part in path:
        ddp = part == "module" and isinstance(module, nn.parallel.DistributedDataParallel)
        if not ddp and part not in ("_orig_mod", "_checkpoint_wrapped_module"):
            kept.append(part)
        module = module.get_submodule(part)
    return ".".join([*kept, last])


def _local(parameter: Tensor) -> Tensor:
    """Return this rank's part of a parameter, without gradient."""
    value = parameter.detach()
    return value.to_local() if isinstance(value, DTensor) else value


@contextmanager
def _materialised_buffers(model: nn.Module, needed: bool, device: str) -> Iterator[None]:
    """Give the buffers of a meta model their values; on an exception they are as they were."""
    saved = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if needed and buffer.is_meta
    ]
    try:
        for module, name, buffer in saved:
            module._buffers[name] = torch.empty_like(buffer, device=device)
        owners = {
            module: owner
            for owner in model.modules()  # the innermost comes last
            if callable(getattr(owner, "_init_weights", None))
            for module in owner.modules()
        }
        for module in dict.fromkeys(module for module, _, _ in saved):
            _reset_buffers(module, owners.get(module))
        yield
    except BaseException:
        for module, name, buffer in saved:
            module._buffers[name] = buffer
        raise


def _reset_buffers(module: nn.Module, owner: nn.Module | None) -> None:
    """Fill a module's buffers through its own method, or that of the transformers model around."""
    for method in ("init_non_persistent_buffers", "reset_running_stats"):
        if callable(reset := getattr(module, method, None)):
            reset()
            return
    buffers = dict(module.named_buffers(recurse=False))
    # It draws parameters as well, which does nothing as long as they are on meta.
    if owner is not None and all(parameter.is_meta for parameter in module.parameters()):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            owner._init_weights(module)  # type: ignore[operator]
        if all(buffer._version for buffer in buffers.values()):  # each was written
            return
    names = list(buffers)
    raise ProjectionError(
        f"{type(module).__name__} has buffers {names} on the meta device and no way to rebuild "
        "them: build the model on the CPU"
    )


@contextmanager
def _interrupts_held() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back inside the block; what is yielded raises one that came, as the end does."""
    ours = threading.current_thread() is threading.main_thread()
    held: list[int] = []

    def check() -> None:
        if held:
            held.clear()
            raise KeyboardInterrupt

    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
