"""What an ancestor does on a few batches: it is run as it is, and watched through its anatomy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightinit.anatomy import Anatomy, Piece, anatomy
from weightinit.errors import BundleError, ProjectionError
from weightinit.inherit.calibration import Call, calls_of
from weightinit.inherit.method import Runnable

__all__ = ["Running", "captured", "exact", "first_tensor", "watching"]

#: Images that are run at a time.
SAMPLES = 64
#: What a block may be given besides the stream, if it is to be passed over.
_CONSTANTS = (bool, int, float, str, type(None))


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device if that has such numbers."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


class Running:
    """A private copy of an ancestor in eval mode, with the calls of its calibration batches.

    Half precision is widened to fp32, and the batches are on the module's device; large batches of
    images are run in parts, which changes nothing and holds less.
    """

    def __init__(self, source: Runnable, calibration: Iterable[Any] | None) -> None:
        run = getattr(source, "module", None)
        if run is None:
            raise ProjectionError(
                "this method runs the ancestor, and it is only weights: pass a module, a timm name "
                "or a Hub repository"
            )
        self.anatomy = source.anatomy
        calls = calls_of(calibration, module := run().eval())
        narrow = {p.dtype for p in module.parameters()} & {torch.float16, torch.bfloat16}
        self.module = _open(module.float() if narrow else module)
        config: Any = getattr(self.module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # a cache would remember the block that is run twice
        self._parameters = {
            self.anatomy.key(name): parameter.data
            for name, parameter in self.module.named_parameters(remove_duplicate=False)
        }
        for name, value in self._parameters.items():
            # Fused attention may return zeros for a head of NaN, and hide it from check().
            if not torch.isfinite(value).all():
                raise BundleError(
                    f"{name} of the ancestor holds NaN or infinity: take an ancestor whose "
                    "training went well"
                )
        self._owners = {
            self.anatomy.key(f"{name}.x").removesuffix(".x"): module
            for name, module in self.module.named_modules()
        }
        like = next(iter(self._parameters.values()))
        self.calls = [
            (tuple(_like(x, like) for x in args), {k: _like(x, like) for k, x in kwargs.items()})
            for args, kwargs in _parted(calls)
        ]
        self._plain = False  # whether blocks map the stream, and nothing else, to the stream

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of a parameter of the copy: a view, to be written to."""
        spec = piece.spec
        return self.anatomy.split(spec, self._parameters[spec.key])[piece.role]

    def owner(self, piece: Piece) -> nn.Module:
        """Return the module whose parameter a piece is of."""
        return self._owners[piece.spec.key.rpartition(".")[0]]

    def bare(self, piece: Piece) -> bool:
        """Return whether a parameter is the model's own, so that no module is called with it."""
        return self.block(0) in set(self.owner(piece).modules())

    def block(self, index: int) -> nn.Module:
        """Return the module that is a block of the main stack."""
        return self.around(self.anatomy.blocks[index].values())

    def around(self, pieces: Iterable[Piece]) -> nn.Module:
        """Return the innermost module that holds all of these pieces."""
        keys = [p.spec.key.split(".") for p in pieces]
        shared = 0
        while all(key[: shared + 1] == keys[0][: shared + 1] for key in keys[1:]):
            shared += 1
        return self._owners[".".join(keys[0][:shared])]

    @torch.no_grad()
    def run(self, number: int) -> Any:
        """Run one batch, and return what comes out; ProjectionError if it is not taken."""
        args, kwargs = self.calls[number]
        try:
            return self.module(*args, **kwargs)
        except ProjectionError:
            raise
        except Exception as error:  # whatever a forward pass makes of the wrong batch
            shapes = [tuple(x.shape) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            raise ProjectionError(
                f"the ancestor does not run on calibration batch {number} of shape {shapes} "
                f"({' '.join(str(error).split())[:200]}): pass batches as it was trained on"
            ) from error

    def trace(
        self, number: int, *, whole: bool = True
    ) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
        """Run one batch, and take it apart.

        Unless the ``whole`` batch is wanted, blocks that were seen to take and to return nothing
        but the stream are passed over.

        Returns:
            The stream ``[..., d]`` before the blocks, and each block, all other arguments bound, as
            a function from the stream before to that after it.
        """
        first: list[Tensor] = []
        replays: list[Callable[[Tensor], Tensor]] = []
        plain: list[bool] = []

        def see(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first.append(first_tensor((*args, *kwargs.values())) if not first else first[0])
            replays.append(_replay(block, args, kwargs))
            given = [x for x in (*args, *kwargs.values()) if not isinstance(x, _CONSTANTS)]
            plain.append(len(given) == 1)

        def end(_: nn.Module, args: Any, result: Any) -> None:
            plain.append(isinstance(result, Tensor))

        with ExitStack() as hooks:
            for module in self._blocks:
                hooks.enter_context(module.register_forward_pre_hook(see, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(end))
            if not whole:
                hooks.enter_context(self._passing())
            self.run(number)
        depth = self.anatomy.depth
        if len(replays) != depth:
            raise ProjectionError(
                f"the ancestor has {depth} blocks and runs {len(replays)}: pass it without "
                "checkpointing, fused blocks and blocks that run twice"
            )
        self._plain = all(plain)
        return first[0], replays

    def resume(self, number: int, stream: Tensor) -> Any:
        """Run one batch with another stream ``[..., d]`` after the blocks; return the output."""

        def put(_: nn.Module, args: Any, result: Any) -> Any:
            return (stream, *result[1:]) if isinstance(result, tuple) else stream

        with self._passing(), self._blocks[-1].register_forward_hook(put):
            return self.run(number)

    @property
    def _blocks(self) -> list[nn.Module]:
        return [self.block(index) for index in range(self.anatomy.depth)]

    @contextmanager
    def _passing(self) -> Iterator[None]:
        """Let plain blocks return the stream as it is."""
        blocks = self._blocks if self._plain else []
        kept = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.forward = lambda *args, **kwargs: first_tensor((*args, *kwargs.values()))
        try:
            yield
        finally:
            for block, forward in zip(blocks, kept, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def check(self, tensor: Tensor) -> Tensor:
        """Return a statistic if it is finite."""
        if not torch.isfinite(tensor).all():
            raise ProjectionError(
                "the ancestor's activations on the calibration batches are not finite: check the "
                "batches with torch.isfinite, and that the ancestor is not in half precision"
            )
        return tensor


@contextmanager
def watching(
    inputs: Mapping[nn.Module, Callable[[Tensor], None]],
    outputs: Mapping[nn.Module, Callable[[Tensor], None]] | None = None,
) -> Iterator[None]:
    """Call back with what modules are given, and what they return, while the block is open."""
    with ExitStack() as hooks:
        for module, see in inputs.items():
            hook = partial(_see_arguments, see)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        for module, see in (outputs or {}).items():
            hooks.enter_context(module.register_forward_hook(partial(_see_result, see)))
        yield


def _see_arguments(see: Callable[[Tensor], None], _: nn.Module, args: Any, kwargs: Any) -> None:
    see(first_tensor((*args, *kwargs.values())))


def _see_result(see: Callable[[Tensor], None], _: nn.Module, args: Any, result: Any) -> None:
    see(first_tensor((result,)))


def _replay(
    block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return a call of a block as a function of the stream, its first tensor."""
    arguments: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    name = next(key for key, value in arguments.items() if isinstance(value, Tensor))
    arguments[name] = None  # let go of the stream
    indices = range(len(args))  # args itself would hold it

    def replay(stream: Tensor) -> Tensor:
        now = {**arguments, name: stream}
        positional = [now.pop(index) for index in indices]
        return first_tensor((block(*positional, **now),))

    return replay


def first_tensor(values: Iterable[Any]) -> Tensor:
    """Return the first tensor of arguments or results, which for a block is the stream."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (tuple, list)):
            return first_tensor(value)
    raise ProjectionError(
        "a part of the ancestor is not called with tensors: pass a model of timm, torchvision or "
        "transformers"
    )


def _parted(calls: Iterable[Call]) -> Iterator[Call]:
    """Yield the calls, those with many samples and no other argument in parts."""
    for args, kwargs in calls:
        if len(args) == 1 and not kwargs and args[0].ndim == 4:
            yield from (((part,), {}) for part in args[0].split(SAMPLES))
        else:
            yield args, kwargs


def _like(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)


def _open(module: nn.Module) -> nn.Module:
    """Return a module whose attention calls its output projection, where torch's own does not."""
    opened: dict[nn.Module, nn.Module] = {}
    for name, child in list(module.named_modules(remove_duplicate=False)):
        # What a subclass or a hook makes of it is not known.
        if type(child) is not nn.MultiheadAttention or not child._qkv_same_embed_dim:
            continue
        if child._forward_hooks or child._forward_pre_hooks:
            continue
        parent, _, last = name.rpartition(".")
        opened.setdefault(child, _Attention(child))
        setattr(module.get_submodule(parent), last, opened[child])
    return module


class _Attention(nn.Module):
    """torch's attention in the open: the same parameters under the same names."""

    #: By which torch's encoder layers know that they cannot compute without their modules.
    _qkv_same_embed_dim = False

    def __init__(self, closed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = closed.in_proj_weight, closed.in_proj_bias
        self.out_proj, self.num_heads = closed.out_proj, closed.num_heads
        self.batch_first, self.embed_dim = closed.batch_first, closed.embed_dim
        self.head_dim, self.dropout = closed.head_dim, closed.dropout
        plain = closed.bias_k is None and not closed.add_zero_attn
        self.unlike = "" if plain else "adds keys of its own"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if is_causal and attn_mask is None:
            raise ProjectionError("the ancestor's attention is causal without a mask: give it one")
        if self.unlike:
            raise ProjectionError(f"the ancestor's attention {self.unlike}: use a model of timm")
        given = [x if self.batch_first else x.transpose(0, -2) for x in (query, key, value)]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for x, w, b in zip(given, weights, biases, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        x = functional.scaled_dot_product_attention(q, k, v, mask)
        x = x.transpose(-3, -2).flatten(-2)
        return self.out_proj(x if self.batch_first else x.transpose(0, -2)), None

    def _mask(self, masks: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """Return what is added to the logits; torch's boolean masks are True where none looks."""
        added = None
        if masks is not None and masks.dim() == 3:
            masks = masks.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = padding[..., None, None, :]
        for mask in (masks, padding):
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
            if mask is not None:
                added = mask.to(like) if added is None else added + mask
        return added


@contextmanager
def captured(model: nn.Module, seen: Anatomy | None = None) -> Iterator[list[Tensor]]:
    """Collect what the classifier of ``model`` reads in each forward inside the block.

    The features ``[B, d]`` (``[B * T, d]`` of texts) are the final class token, the pooled patches,
    or every token of a text, after the final norm. A model without a classifier, or whose
    classifier is its embedding, returns them itself.
    """
    features: list[Tensor] = []
    head = (seen or anatomy(model)).outside.get("head.weight")

    def result(_: nn.Module, given: Any, out: Any) -> None:
        out = out if isinstance(out, Tensor) else out.last_hidden_state
        features.append(out.flatten(0, -2))

    def argument(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        features.append(given[0].flatten(0, -2))

    if head is None:
        # a language model of transformers: what lies under its head
        handle = getattr(model, "base_model", model).register_forward_hook(result)
    else:
        path = head.spec.name.rpartition(".")[0]
        blocks = (seen or anatomy(model)).blocks
        inside = [p.spec.name for p in blocks[0].values()] if blocks else []
        if not path or any(name.startswith(f"{path}.") for name in inside):
            raise ProjectionError(
                f"{head.spec.name} is a parameter of the model itself, and what it is given cannot "
                "be seen: make it the weight of a torch.nn.Linear"
            )
        module = model.get_submodule(path)
        handle = module.register_forward_pre_hook(argument)
    with handle:
        yield features
