"""From whatever a user calls an ancestor to its anatomy and a way to read its tensors."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from weightinit.anatomy import Anatomy, Rule, anatomy
from weightinit.ancestor.models import Library, from_config, from_metadata, timm_library
from weightinit.ancestor.pair import bare_anatomy, pair
from weightinit.ancestor.weights import (
    ADVICE,
    PICKLED,
    Weights,
    download,
    find_weights,
    read_config,
)
from weightinit.errors import AnatomyError, BundleError, ProjectionError
from weightinit.files import hub
from weightinit.files.hub import CONFIG

__all__ = ["Opened", "of_module", "of_name", "of_state"]

_HUB_PREFIXES = ("hf-hub:", "hf_hub:")
_FILES = (".safetensors", *PICKLED)


class Opened(NamedTuple):
    """An open ancestor: what :class:`weightinit.Ancestor` is made of.

    Args:
        anatomy: of the network.
        source: where it came from, in words.
        read: returns a stored parameter by its name in the anatomy, contiguous and on the CPU.
        module: returns a runnable copy.
    """

    anatomy: Anatomy
    source: str
    read: Callable[[str], Tensor]
    module: Callable[[], nn.Module]


def of_module(
    module: nn.Module,
    heads: int | None,
    source: str | None = None,
    rules: Sequence[Rule] = (),
) -> Opened:
    """Open a module.

    Raises:
        ProjectionError: if it is on the meta device.
    """
    seen = anatomy(module, rules=rules, sizes=_heads(heads))
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
    return Opened(seen, source, lambda name: _full(parameters[name]), copied)


def of_state(state: Mapping[str, Tensor], heads: int | None, rules: Sequence[Rule] = ()) -> Opened:
    """Open a state dict.

    Raises:
        ProjectionError: if it is on the meta device, or its head count is not known.
    """
    seen = _bare(
        lambda heads: anatomy(state, rules=rules, sizes=_heads(heads)), heads, "state_dict"
    )
    _check_values(seen, state)
    source = f"a state dict of {len(state)} tensors"
    return Opened(seen, source, lambda name: _full(state[name]), _no_module(source))


def of_name(
    ancestor: str | os.PathLike[str],
    heads: int | None,
    revision: str | None,
    options: Mapping[str, Any],
    rules: Sequence[Rule] = (),
) -> Opened:
    """Open what has a path or a name; ``options`` are the Hub client's.

    Raises:
        ProjectionError: if there is no such ancestor, or its head count is not known.
        BundleError: if its files cannot be had or are not sound.
    """
    text = os.fspath(ancestor)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ProjectionError(f"{ancestor!r} names no ancestor: pass a path or a name")
    # os.path answers False, where Path raises, for what cannot be a path at all.
    expanded = os.path.expanduser(text)  # noqa: PTH111
    is_file, is_folder = os.path.isfile(expanded), os.path.isdir(expanded)  # noqa: PTH112, PTH113
    named = isinstance(ancestor, str) and not is_file and not text.endswith(_FILES)
    if named and text.startswith(_HUB_PREFIXES):
        return _of_hub(text.partition(":")[2], heads, revision, options, rules)
    if named and (found := _of_timm(text, heads, revision, options, rules)):
        return found
    if is_file or is_folder:
        if revision is not None:
            raise ProjectionError(f"{text!r} is a path and has no {revision=}: leave it out")
        path = Path(expanded)
        source = str(path.resolve())
        if is_folder:
            return _of_folder(path, heads, source, rules)
        return _of_bare(Weights([path]), heads, source, rules)
    if named and hub.REPO.fullmatch(text):
        return _of_hub(text, heads, revision, options, rules)
    raise _unknown(text)


def _heads(heads: int | None) -> dict[str, int] | None:
    return None if heads is None else {"h": heads}


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


def _bare(see: Callable[[int | None], Anatomy], heads: int | None, what: str) -> Anatomy:
    """Return an anatomy without a module; say what to do if only the head count is missing."""
    try:
        return see(heads)
    except AnatomyError:
        if heads is not None:
            raise
        try:
            see(1)
        except AnatomyError:
            pass
        else:
            raise ProjectionError(
                "no shape tells the number of attention heads: pass "
                f"weightinit.Ancestor.open({what}, heads=12) as the ancestor, with the true number"
            ) from None
        raise


def _no_module(source: str) -> Callable[[], nn.Module]:
    def module() -> nn.Module:
        raise ProjectionError(
            f"{source} cannot be run, which this needs: pass the module itself, a timm name, or a "
            "folder with config.json"
        )

    return module


def _unknown(text: str) -> ProjectionError:
    import timm

    names = timm.list_models(pretrained=True)
    close = difflib.get_close_matches(text, [*names, *{n.partition(".")[0] for n in names}], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ProjectionError(
        f"there is no ancestor {text[:200]!r}: {hint}pass a module, a state dict, an existing "
        "safetensors file or folder, the name of a pretrained timm model "
        "(timm.list_models(pretrained=True)), or 'org/name@revision' of the Hub"
    )


def _of_timm(
    text: str,
    heads: int | None,
    revision: str | None,
    options: Mapping[str, Any],
    rules: Sequence[Rule],
) -> Opened | None:
    """Open a pretrained model of timm; return None if the name is none of its architectures."""
    import timm

    name, _, pinned = text.partition("@")
    if not timm.is_model(name):
        return None
    if pinned and revision and pinned != revision:
        raise ProjectionError(f"two revisions are given, in {text!r} and {revision=}: pass one")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that it does not have
        config = None
    if config is None or not config.has_weights:
        known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        close = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=5)
        raise ProjectionError(
            f"timm has no pretrained weights for {name!r}: use one of {(known or close)[:8]}, or "
            "pass the module with its weights"
        )
    if config.file:
        if revision or pinned:
            raise ProjectionError(f"timm has {name} as {config.file}, of no revision: leave it out")
        path, at = Path(config.file), str(config.file)
        weights = find_weights(path, at) if path.is_dir() else Weights([path])
    elif config.hf_hub_id:
        repo, _, default = config.hf_hub_id.partition("@")
        files = _safe_names(config.hf_hub_filename)
        folder, at = download(repo, pinned or revision or default or None, files, **options)
        found = [folder / file for file in files if (folder / file).exists()]
        weights = Weights(found[:1]) if files else find_weights(folder, at)
    else:
        raise BundleError(
            f"timm has {name} only as {config.url}, which is no safetensors file. {ADVICE}"
        )
    return _of_weights(weights, timm_library(name, weights), heads, f"{name} ({at})", rules)


def _safe_names(file: str | None) -> tuple[str, ...]:
    """Return the safetensors files that may stand for a weights file of timm's."""
    stem = (file or "").rpartition(".")[0]
    names = (stem, stem.replace("pytorch_", ""))
    return tuple(dict.fromkeys(f"{name}.safetensors" for name in names if name))


def _of_hub(
    name: str,
    heads: int | None,
    revision: str | None,
    options: Mapping[str, Any],
    rules: Sequence[Rule],
) -> Opened:
    split = hub.split_revision(name, revision)
    if split is None:
        raise ProjectionError(f"{name[:200]!r} is no name of the Hub: pass 'org/name@revision'")
    folder, source = download(*split, **options)
    return _of_folder(folder, heads, source, rules)


def _of_folder(folder: Path, heads: int | None, source: str, rules: Sequence[Rule]) -> Opened:
    config = read_config(folder / CONFIG) if (folder / CONFIG).exists() else None
    weights = find_weights(folder, source)
    if config is None:
        return _of_bare(weights, heads, source, rules)
    return _of_weights(weights, from_config(folder, config, weights), heads, source, rules)


def _of_bare(weights: Weights, heads: int | None, source: str, rules: Sequence[Rule]) -> Opened:
    """Open files that no config stands beside."""
    library = from_metadata(weights, source)
    if library is not None:
        return _of_weights(weights, library, heads, source, rules)
    what = repr(os.fspath(weights.paths[0]))
    seen = _bare(lambda heads: bare_anatomy(weights, heads, rules), heads, what)
    return Opened(seen, source, weights.read, _no_module(source))


def _of_weights(
    weights: Weights, library: Library, heads: int | None, source: str, rules: Sequence[Rule]
) -> Opened:
    """Stream the weights of a model that a library builds, or let the library convert them."""
    meta = library.meta()
    seen = anatomy(meta, rules=rules, sizes=_heads(heads))
    names, fault = pair(seen, meta, weights, library.name)
    if names is None:
        try:
            module = library.loaded()
        except BundleError as error:
            raise BundleError(
                f"{source} does not hold the model that its config states: {fault}. Save or "
                f"download both again, or pass the module ({str(error)[:300]})"
            ) from error
        return of_module(module, heads, source, rules)

    def module_of() -> nn.Module:
        if library.name == "timm":
            return library.filled(weights, names)
        return library.loaded()

    return Opened(seen, source, lambda name: weights.read(names[name]), module_of)
