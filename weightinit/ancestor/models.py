"""The library that knows an ancestor's weights: it builds the model, and loads what differs.

A model is built on the meta device to learn its anatomy; the weights are then streamed if the files
hold exactly its parameters. Where they do not, the library's own loading converts them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from weightinit.ancestor.pair import blocks_among, fault
from weightinit.ancestor.weights import Weights
from weightinit.errors import BundleError, ProjectionError
from weightinit.files.checks import parse_json

__all__ = ["Library", "Timm", "Transformers", "from_config", "from_metadata"]

#: Arguments of timm.create_model that a file must not set: they read further files.
_RESERVED = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
#: The models of transformers that a config may build; others may load further files then.
MODEL_TYPES = ("vit", "deit", "bert", "roberta", "gpt2")
_DEPTHS = ("depth", "depths", "num_hidden_layers", "n_layer", "num_layers")
#: More classes than any checkpoint has: transformers builds a name for each.
_MAX_LABELS = 10**6


class Library(ABC):
    """A library that builds the model that some weights are of, and reads them if need be."""

    name: ClassVar[str]

    @abstractmethod
    def _build(self) -> nn.Module:
        """Return the model on the default device, its weights unread."""

    @abstractmethod
    def _load(self) -> nn.Module:
        """Return the model on the CPU, its weights read and converted by the library."""

    def meta(self) -> nn.Module:
        """Return the model on the meta device, in eval mode: it costs next to nothing."""
        with self._explained("build"), torch.device("meta"):
            return self._build().eval()

    def module(self, weights: Weights, names: Mapping[str, str]) -> nn.Module:
        """Return the model with tensors read one by one; ``names`` are those in the files."""
        with self._explained("build"), torch.random.fork_rng(devices=[]):
            module = self._build().eval()
        if any(weights.dtypes[name] == "F64" for name in names.values()):
            module = module.double()
        with torch.no_grad():
            for name, tensor in module.named_parameters():
                tensor.copy_(weights.read(names[name]))
            for name, tensor in module.named_buffers():
                if weights.shapes.get(name) == tuple(tensor.shape):
                    tensor.copy_(weights.read(name))
        return module

    def loaded(self) -> nn.Module:
        """Return the model with its weights, in eval mode; the global generator stays as it was."""
        with self._explained("load"), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return self._load().eval()

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except (BundleError, ProjectionError):
            raise
        except Exception as error:  # whatever a config makes a library's constructors raise
            raise BundleError(
                f"{self.name} cannot {action} this ancestor ({_reason(error)}): update "
                f"{self.name}, or load the model yourself and pass the module"
            ) from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True)
class Timm(Library):
    """A model of timm's own, by its name or ``"local-dir:"`` and a folder with a config.json."""

    model: str
    weights: Weights
    arguments: Mapping[str, Any] = field(default_factory=dict)
    name: ClassVar[str] = "timm"

    def _build(self) -> nn.Module:
        import timm

        return timm.create_model(self.model, pretrained=False, **self.arguments)

    def _load(self) -> nn.Module:
        import timm

        if len(self.weights.paths) != 1:
            raise BundleError("timm reads one file: merge the shards into one model.safetensors")
        # The file that was checked and nothing else: left alone, timm falls back to pickles.
        overlay = {"source": "", "file": str(self.weights.paths[0]), "custom_load": False}
        # torch.manual_seed would reset the generators of all GPUs too, which nothing restores.
        torch.default_generator.manual_seed(0)
        module: Any = timm.create_model(
            self.model, pretrained=True, pretrained_cfg_overlay=overlay, **self.arguments
        )
        torch.default_generator.manual_seed(0)
        drawn = _still(module, self._build())
        classes = module.pretrained_cfg.get("num_classes")
        if drawn or classes not in (None, module.num_classes):
            # timm leaves random what it does not find in some models' files.
            raise BundleError(fault(drawn or ["a head of these classes"], [], []))
        return module


def _still(module: nn.Module, fresh: nn.Module) -> list[str]:
    """Return the parameters that are as they were drawn; constants are no draws."""
    drawn = dict(fresh.named_parameters())
    return [
        name
        for name, value in module.named_parameters()
        if torch.equal(value, drawn[name]) and value.min() != value.max()
    ]


@dataclass(frozen=True)
class Transformers(Library):
    """A model of transformers, one of its own classes, in a folder with its config.json."""

    folder: Path
    config: Any
    model: Any
    name: ClassVar[str] = "transformers"

    @classmethod
    def of(cls, folder: Path, raw: Mapping[str, Any], where: str) -> Transformers:
        """Return the model that the config.json of a folder describes, or raise."""
        kind = raw["model_type"]
        if kind not in MODEL_TYPES:
            raise ProjectionError(
                f"{where} has model_type {kind[:64]!r}, and files are read of {MODEL_TYPES}: load "
                "the model with transformers and pass the module"
            )
        if raw.get("quantization_config") or (folder / "adapter_config.json").exists():
            raise BundleError(
                f"{where} is of quantized weights or an adapter: load the model with transformers, "
                "dequantize or merge it, and pass the module"
            )
        try:
            import transformers
        except ImportError as error:
            raise ProjectionError(
                f"{where} is of transformers, which is not installed: pip install transformers"
            ) from error
        try:
            config = transformers.CONFIG_MAPPING[kind].from_dict(_plain(raw))
        except Exception as error:  # whatever a config makes it raise
            raise BundleError(
                f"transformers cannot read {where} ({_reason(error)}): update transformers, or "
                "load the model yourself and pass the module"
            ) from error
        names = getattr(config, "architectures", None)
        for name in names if isinstance(names, list) else ():
            found = getattr(transformers, str(name), None)
            # The class that was saved knows its head; only transformers' own are ever taken.
            if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
                if found.config_class is type(config):
                    return cls(folder, config, found)
        return cls(folder, config, transformers.MODEL_MAPPING[type(config)])

    def _build(self) -> nn.Module:
        return self.model(self.config)

    def _load(self) -> nn.Module:
        module, info = self.model.from_pretrained(
            self.folder,
            config=self.config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        # transformers draws what is missing, and passes over the blocks that are too many.
        missing = sorted(info["missing_keys"])
        stray = blocks_among(info["unexpected_keys"], [n for n, _ in module.named_parameters()])
        if missing or stray:
            raise BundleError(fault(missing, [], stray))
        return module


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what makes transformers fetch kernels, code or other weights."""
    return {
        key: value
        for key, value in config.items()
        if "implementation" not in key and key not in ("auto_map", "transformers_weights")
    }


def from_config(folder: Path, config: Mapping[str, Any], weights: Weights) -> Library:
    """Return the library that a config.json is of, timm or transformers, or raise."""
    where = f"{folder / 'config.json'}"
    architecture = config.get("architecture")
    if isinstance(architecture, str):
        import timm

        if not timm.is_model(architecture):
            raise BundleError(
                f"{where} has architecture {architecture[:64]!r}, which this timm "
                f"({timm.__version__}) does not know: update timm, or pass the module"
            )
        _check_arguments(config.get("model_args", {}), weights, where)
        return Timm(f"local-dir:{folder}", weights)
    if isinstance(config.get("model_type"), str):
        _check_depth(config, weights, where)
        return Transformers.of(folder, config, where)
    if {"schema", "kind", "sha256"} <= config.keys():
        raise BundleError(
            f"{where} is of a weightinit bundle, not of a pretrained network: pass it to "
            "init_from_templates"
        )
    raise BundleError(
        f"{where} has neither timm's 'architecture' nor transformers' 'model_type': load the model "
        "with its own library and pass the module"
    )


def from_metadata(weights: Weights, what: str) -> Library | None:
    """Return timm if the metadata of a safetensors file says how to build its model."""
    architecture = weights.metadata.get("architecture")
    if architecture is None:
        return None
    import timm

    if not timm.is_model(architecture):
        return None
    text = weights.metadata.get("model_args", "{}").encode()
    arguments = parse_json(text, f"model_args in the metadata of {what}", 10_000)
    _check_arguments(arguments, weights, what)
    return Timm(architecture, weights, arguments)


def _check_arguments(arguments: object, weights: Weights, where: str) -> None:
    if not isinstance(arguments, dict) or _RESERVED & arguments.keys():
        raise BundleError(
            f"the model_args of {where} must be an object without {sorted(_RESERVED)}: correct it"
        )
    _check_depth(arguments, weights, where)


def _check_depth(config: Mapping[str, Any], weights: Weights, where: str) -> None:
    """Raise BundleError if more blocks are to be built than there are tensors, or labels named."""
    labels = config.get("num_labels")
    if isinstance(labels, (int, float)) and labels > _MAX_LABELS:
        raise BundleError(f"{where} has num_labels {labels}, over {_MAX_LABELS}: correct it")
    for key in _DEPTHS:
        value = config.get(key)
        for depth in value if isinstance(value, list) else [value]:
            if isinstance(depth, (int, float)) and depth > len(weights.shapes):
                raise BundleError(
                    f"{where} has {key} {depth}, for {len(weights.shapes)} tensors: they are not "
                    "of one model; correct it"
                )
