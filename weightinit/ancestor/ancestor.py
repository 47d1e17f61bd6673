"""One pretrained network, whatever form it comes in: read tensor by tensor, and never changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from weightinit.anatomy import Anatomy, Piece, Rule
from weightinit.ancestor.open import Opener
from weightinit.errors import AnatomyError, BundleError, ProjectionError
from weightinit.files.hub import Client
from weightinit.numerics import finite

__all__ = ["Ancestor"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Ancestor:
    """A pretrained network: its anatomy, and its tensors one at a time.

    Make one with :meth:`open`. Files are read as they are asked for and at most one stored tensor
    is held, so that the peak of memory stays near the largest of them. Nothing is ever written to
    the ancestor, and what is returned must not be written to either: it may share its memory.

    Attributes:
        anatomy: anatomy of the network.
        source: where it came from, in words, with the resolved commit of a Hub repository.
        live: the tensors of the user that it reads, if it came as a module or state dict.

    Examples:
        >>> import timm, weightinit as wi
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=5)
        >>> ancestor = wi.Ancestor.open(model)
        >>> ancestor.anatomy.depth, ancestor.source
        (2, 'a VisionTransformer')
        >>> ancestor.stored("blocks.1.attn.qkv.weight").shape
        torch.Size([576, 192])
        >>> ancestor.part(ancestor.anatomy.blocks[1]["attn.k.weight"]).shape
        torch.Size([192, 192])
    """

    def __init__(
        self,
        anatomy: Anatomy,
        source: str,
        read: Callable[[str], Tensor],
        module: Callable[[], nn.Module],
        live: Iterable[Tensor] = (),
    ) -> None:
        self.anatomy = anatomy
        self.source = source
        self._read = read
        self._module = module
        self.live = tuple(live)
        self._last: tuple[str, Tensor] | None = None

    def __repr__(self) -> str:
        family, depth, sizes = self.anatomy.family, self.anatomy.depth, dict(self.anatomy.sizes)
        return f"Ancestor({self.source!r}, {family=}, {depth=}, {sizes=})"

    def stored(self, name: str) -> Tensor:
        """Return one parameter as it is stored: its own dtype and shape, contiguous, on the CPU.

        A DTensor is returned whole; all ranks must ask for it together.

        Args:
            name: name of the parameter, with or without the prefixes of wrappers.

        Raises:
            AnatomyError: if there is no such parameter.
            BundleError: if it cannot be read, or holds NaN or infinity.
        """
        name = self.anatomy.spec(name).name
        # The parts of a fused tensor are asked for one after the other.
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of the old one before the new one is read
            tensor = self._read(name)
            if tensor.dtype not in _DTYPES:
                raise BundleError(
                    f"{name} of {self.source} is {tensor.dtype}: pass it in one of {_DTYPES}"
                )
            if not finite(tensor):
                raise BundleError(
                    f"{name} of {self.source} holds NaN or infinity: take an ancestor whose "
                    "training went well"
                )
            self._last = name, tensor
        return self._last[1]

    def part(self, piece: Piece) -> Tensor:
        """Return a canonical part of a parameter.

        Args:
            piece: piece of :attr:`anatomy`.

        Returns:
            A tensor of :attr:`Piece.size` in fp32 on the CPU; fp64 stays fp64.

        Raises:
            AnatomyError: if the piece is not of this ancestor.
            BundleError: if the parameter cannot be read, or holds NaN or infinity.
        """
        spec = self.anatomy.spec(piece.spec.name)
        if spec != piece.spec:
            raise AnatomyError(
                f"{piece.role} of {piece.spec.name} is not of {self.source}: pass a piece of "
                "ancestor.anatomy"
            )
        view = self.anatomy.split(spec, self.stored(spec.name))[piece.role]
        return view if view.dtype == torch.float64 else view.to(torch.float32)

    def module(self) -> nn.Module:
        """Return a runnable copy in eval mode, on the CPU or where the user's own module is.

        The user's own module is copied without the wrappers of DDP and torch.compile around it.

        Raises:
            ProjectionError: if there is nothing that runs: a state dict or a bare file, or a
                sharded module, which cannot be copied.
        """
        return self._module()

    @classmethod
    def open(
        cls,
        ancestor: Ancestor | nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
        *,
        heads: int | None = None,
        grid: tuple[int, int] | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        rules: Iterable[Rule] = (),
    ) -> Ancestor:
        """Open an ancestor; no pickle is read and no code of a file or repository runs.

        Args:
            ancestor: a module on any device (wrapped by DDP, torch.compile, FSDP2 or not), a state
                dict, a safetensors file, a folder with config.json and model.safetensors (sharded
                or not), the name of a pretrained timm model with or without tag, or
                ``"org/name"`` of the Hub, with ``"hf-hub:"`` before it or not. ``"@revision"`` may
                follow the last two. The configs of timm and of transformers are understood.
            heads: number of attention heads, for a state dict or a file that does not say.
            grid: rows and columns of patches, for a state dict or a file that does not say; without
                it they are taken to make a square.
            revision: branch, tag or commit of the Hub repository.
            cache_dir: folder of the Hub's cache; default: that of huggingface_hub.
            token: token for private repositories; default: the one of ``hf auth login``.
            local_files_only: use the cache only. ``HF_HUB_OFFLINE=1`` does the same.
            rules: rules for parameters that no built-in rule explains; see
                :func:`weightinit.anatomy`. An open ancestor has its own.

        Raises:
            ProjectionError: if there is no such ancestor, or its head count is not known.
            BundleError: if files cannot be had, are damaged, pickles, or of another model than
                their config says.
            AnatomyError: if parameters of its blocks are not explained; what lies beside a known
                network (mask tokens, decoders, losses) is left out, and listed in
                ``anatomy.unexplained``.
        """
        client = Client(cache_dir, token, local_files_only)
        opener = Opener(heads, grid, revision, client, tuple(rules))
        if isinstance(ancestor, (str, os.PathLike)):
            return cls(*opener.named(ancestor))
        if revision is not None:
            raise ProjectionError(
                f"a {type(ancestor).__name__} has no revision {revision!r}: leave revision= out"
            )
        if isinstance(ancestor, Ancestor):
            seen = ancestor.anatomy
            if heads not in (None, seen.sizes.get("h")) or grid not in (None, seen.traits.grid):
                late = f"{heads=}" if grid is None else f"{grid=}"
                raise ProjectionError(f"this ancestor is open: {late} comes too late, leave it out")
            return ancestor
        if isinstance(ancestor, nn.Module):
            return cls(*opener.module(ancestor))
        if isinstance(ancestor, Mapping):
            return cls(*opener.state(ancestor))
        raise ProjectionError(
            f"a {type(ancestor).__name__} is no ancestor: pass a module, a state dict, a path, the "
            "name of a timm model, or 'org/name@revision' of the Hub"
        )
