"""From whatever a user calls an ancestor to its anatomy and a way to read its tensors."""

from __future__ import annotations

import copy
import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weightinit.anatomy import Anatomy, ParamSpec, Rule, anatomy
from weightinit.ancestor.models import Library, Timm, from_config, from_metadata
from weightinit.ancestor.pair import pair
from weightinit.ancestor.weights import ADVICE, Weights, download, find_weights, read_config
from weightinit.errors import AnatomyError, BundleError, ProjectionError
from weightinit.files import hub
from weightinit.files.checks import PICKLE_SUFFIXES
from weightinit.files.hub import CONFIG

__all__ = ["Opener"]

_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_FILES = (".safetensors", *PICKLE_SUFFIXES)


#: The arguments of :class:`weightinit.Ancestor`: the anatomy, where the network is from, what
#: returns a stored tensor by its name, contiguous and on the CPU, a runnable copy, and the tensors
#: of the user's that it reads.
Network = tuple[Anatomy, str, Callable[[str], Tensor], Callable[[], nn.Module], Iterable[Tensor]]


@dataclass(frozen=True)
class Opener:
    """Opens ancestors, with the options of :meth:`weightinit.Ancestor.open`; a method a kind."""

    heads: int | None
    grid: tuple[int, int] | None
    revision: str | None
    client: hub.Client
    rules: Sequence[Rule]

    def __post_init__(self) -> None:
        """Check the head count and the grid."""
        if self.heads is not None and (type(self.heads) is not int or self.heads < 1):
            raise ProjectionError(
                f"heads={self.heads!r}: pass a positive whole number, or leave it out"
            )
        grid = self.grid
        if grid is not None and [type(x) for x in grid if x > 0] != [int, int]:
            raise ProjectionError(f"{grid=}: pass (rows, columns) of patches, or leave it out")

    def module(self, module: nn.Module, source: str | None = None) -> Network:
        """Open a module; ``source`` is where it is from, if it was not the user's."""
        seen = self._anatomy(module)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        _check_values(seen, parameters)
        inner = _inner(module)

        def copied() -> nn.Module:
            try:
                return copy.deepcopy(inner).eval()
            except Exception as error:  # whatever a module's own attributes raise
                raise ProjectionError(
                    f"a {type(inner).__name__} cannot be copied ({str(error)[:200]}): open the "
                    "ancestor before sharding it, or pass its name or file"
                ) from error

        source = source or f"a {type(inner).__name__}"
        return seen, source, lambda name: _full(parameters[name]), copied, parameters.values()

    def state(self, state: Mapping[str, Tensor]) -> Network:
        """Open a state dict."""
        seen = self._bare_anatomy(state, "state_dict")
        _check_values(seen, state)
        source = f"a state dict of {len(state)} tensors"
        reading = partial(_no_module, source)
        return seen, source, lambda name: _full(state[name]), reading, state.values()

    def named(self, ancestor: str | os.PathLike[str]) -> Network:
        """Open what has a path or a name."""
        text = os.fspath(ancestor)
        if not isinstance(text, str) or not text or "\0" in text:
            raise ProjectionError(f"{ancestor!r} names no ancestor: pass a path or a name")
        # os.path answers False, where Path raises, for what cannot be a path at all.
        expanded = os.path.expanduser(text)  # noqa: PTH111
        is_file, is_folder = os.path.isfile(expanded), os.path.isdir(expanded)  # noqa: PTH112, PTH113
        named = isinstance(ancestor, str) and not is_file and not text.endswith(_FILES)
        if named and text.startswith(_HUB_PREFIXES):
            return self.repository(text.partition(":")[2])
        if named and (found := self.timm_model(text)):
            return found
        if is_file or is_folder:
            if (revision := self.revision) is not None:
                raise ProjectionError(f"{text!r} is a path and has no {revision=}: leave it out")
            path = Path(expanded)
            source = str(path.resolve())
            return self.folder(path, source) if is_folder else self.file(Weights([path]), source)
        if named and hub.REPO.fullmatch(text):
            return self.repository(text)
        import timm

        known = timm.list_models(pretrained=True)
        architectures = {name.partition(".")[0] for name in known}
        close = difflib.get_close_matches(text, [*known, *architectures], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ProjectionError(
            f"there is no ancestor {text[:200]!r}: {hint}pass a module, a state dict, an existing "
            "safetensors file or folder, the name of a pretrained timm model "
            "(timm.list_models(pretrained=True)), or 'org/name@revision' of the Hub"
        )

    def timm_model(self, text: str) -> Network | None:
        """Open a pretrained model of timm; return None if the name is none of its architectures."""
        import timm

        name, _, pinned = text.partition("@")
        if not timm.is_model(name):
            return None
        if pinned and (revision := self.revision) and pinned != revision:
            raise ProjectionError(f"two revisions are given, in {text!r} and {revision=}: pass one")
        try:
            config = timm.get_pretrained_cfg(name)
        except RuntimeError:  # a tag that it does not have
            config = None
        if config is None or not config.has_weights:
            known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
            close = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=5)
            raise ProjectionError(
                f"timm has no pretrained weights for {name!r}: use one of {(known or close)[:8]}, "
                "or pass the module with its weights"
            )
        if config.file:
            if self.revision or pinned:
                raise ProjectionError(
                    f"timm has {name} as {config.file}, of no revision: leave it out"
                )
            path, at = Path(config.file), str(config.file)
            weights = find_weights(path, at) if path.is_dir() else Weights([path])
        elif config.hf_hub_id:
            repo, _, default = config.hf_hub_id.partition("@")
            # The safetensors files that may stand for one of timm's.
            stem = (config.hf_hub_filename or "").rpartition(".")[0]
            files = [f"{name}.safetensors" for name in (stem, stem.replace("pytorch_", "")) if stem]
            revision = pinned or self.revision or default or None
            folder, at = download(self.client, repo, revision, files)
            found = [folder / file for file in files if (folder / file).exists()]
            weights = Weights(found[:1]) if files else find_weights(folder, at)
        else:
            raise BundleError(
                f"timm has {name} only as {config.url}, which is no safetensors file. {ADVICE}"
            )
        return self._of_library(weights, Timm(name, weights), f"{name} ({at})")

    def repository(self, name: str) -> Network:
        """Open a repository of the Hub."""
        split = hub.split_revision(name, self.revision)
        if split is None:
            raise ProjectionError(f"{name[:200]!r} is no name of the Hub: pass 'org/name@revision'")
        return self.folder(*download(self.client, *split))

    def folder(self, folder: Path, source: str) -> Network:
        """Open a folder of weights, with or without a config.json."""
        config = read_config(folder / CONFIG) if (folder / CONFIG).exists() else None
        weights = find_weights(folder, source)
        if config is None:
            return self.file(weights, source)
        return self._of_library(weights, from_config(folder, config, weights), source)

    def file(self, weights: Weights, source: str) -> Network:
        """Open files that no config stands beside."""
        library = from_metadata(weights, source)
        if library is not None:
            return self._of_library(weights, library, source)
        seen = self._bare_anatomy(weights.meta(), repr(os.fspath(weights.paths[0])))
        return seen, source, weights.read, partial(_no_module, source), ()

    def _of_library(self, weights: Weights, library: Library, source: str) -> Network:
        """Stream the weights of a model that a library builds, or let the library convert them."""
        meta = library.meta()
        seen = self._anatomy(meta)
        names, fault, extra = pair(seen, meta, weights, library.name)
        if names:
            module = partial(library.module, weights, names)
            spare = tuple(ParamSpec.bare(name, name, weights.shapes[name]) for name in extra)
            seen = replace(seen, unexplained=spare)
            return seen, source, lambda name: weights.read(names[name]), module, ()
        wrong = f"{source} does not hold the model that its config states: {fault}. Save or "
        wrong += "download both again, or pass the module"
        # Conversions change shapes a little; a config alone must not fill the memory.
        stated = sum(parameter.numel() for parameter in meta.parameters())
        stored = sum(map(math.prod, weights.shapes.values()))
        if stated > 4 * stored + 2**22:
            raise BundleError(f"{wrong} (it has {stated} numbers, and the files {stored})")
        try:
            return self.module(library.loaded(), source)
        except BundleError as error:
            raise BundleError(f"{wrong} ({str(error)[:300]})") from error

    def _anatomy(self, source: nn.Module | Mapping[str, Tensor]) -> Anatomy:
        sizes = None if self.heads is None else {"h": self.heads}
        seen = anatomy(source, rules=self.rules, sizes=sizes, unexplained="outside")
        if self.grid is None:
            return seen
        known, positions = seen.traits, seen.sizes.get("t")
        told = bool(known.grid) and not known.grid_assumed
        # Without positions, tables of relative ones may be resampled by the grid.
        rows = None if positions is None else positions - math.prod(self.grid)
        # A pretraining token that was taken out may have left its position behind.
        most = known.prefix_tokens + 1
        if (known.grid != self.grid) if told else (rows is not None and not 0 <= rows <= most):
            raise ProjectionError(
                f"grid={self.grid} does not fit the ancestor, which has "
                f"{f'one of {known.grid}' if told else f'{positions} positions'}: pass (rows, "
                "columns) of its patches, or leave it out"
            )
        traits = replace(known, grid=self.grid, grid_assumed=False, pos_prefix=rows)
        return seen if told else replace(seen, traits=traits)

    def _bare_anatomy(self, state: Mapping[str, Tensor], what: str) -> Anatomy:
        """Return an anatomy without a module; say what to do if only the head count is missing."""
        try:
            return self._anatomy(state)
        except AnatomyError:
            if self.heads is None:
                with suppress(AnatomyError):
                    replace(self, heads=1)._anatomy(state)
                    raise ProjectionError(
                        "no shape tells the number of attention heads: pass weightinit.Ancestor."
                        f"open({what}, heads=12) as the ancestor, with the true number"
                    ) from None
            raise


def _check_values(seen: Anatomy, tensors: Mapping[str, Tensor]) -> None:
    meta = [spec.name for spec in seen.specs if tensors[spec.name].is_meta]
    if meta:
        raise ProjectionError(
            f"the ancestor is on the meta device and has no values ({meta[0]}, ...): load its "
            "weights first, or pass its name or file"
        )


def _inner(module: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel and torch.compile."""
    while True:
        inner = module._modules.get("_orig_mod")
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if inner is None:
            return module
        module = inner


def _full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def _no_module(source: str) -> nn.Module:
    raise ProjectionError(
        f"{source} cannot be run, which this needs: pass the module itself, a timm name, or a "
        "folder with config.json"
    )
