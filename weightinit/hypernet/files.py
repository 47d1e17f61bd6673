"""Hypernetworks as files: config.json and model.safetensors in a folder or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from weightinit.errors import BundleError
from weightinit.files.bundle import Bundle
from weightinit.files.checks import Shape, some
from weightinit.files.config import BundleConfig
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork

__all__ = ["HyperNetwork"]


def wanted(config: BundleConfig) -> dict[str, Shape]:
    """Return the name and shape of every tensor that a hypernetwork's bundle holds.

    Raises:
        BundleError: if the config is not a hypernetwork's.
    """
    options = HyperConfig.from_dict(config.options)
    if options.kind != config.method:
        raise BundleError(
            f"the bundle's method is {config.method!r} and its options are of {options.kind!r}: "
            "use the same"
        )
    with torch.device("meta"):
        state = GraphHyperNetwork(options).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_tensors(config: BundleConfig, shapes: Mapping[str, Shape]) -> None:
    expected = wanted(config)
    lacking, unknown = expected.keys() - shapes.keys(), shapes.keys() - expected.keys()
    if lacking or unknown:
        raise BundleError(
            f"the hypernetwork lacks tensors [{some(lacking)}] and has unknown ones "
            f"[{some(unknown)}]: use a bundle that save_pretrained or `weightinit convert` wrote"
        )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise BundleError(
                f"tensor {name} has shape {tuple(shapes[name])}, its config calls for {shape}: "
                "use another bundle"
            )


def _check_expansion(
    config: BundleConfig, shapes: Mapping[str, Shape], nbytes: int, max_bytes: int
) -> None:
    """What is predicted has the size of the user's own model: nothing can be a bomb."""


class HyperNetwork(Bundle):
    """A hypernetwork's weights and configuration; :meth:`module` is the network.

    Frozen. ``tensors`` is the network's state dict, under the published names.

    Args:
        config: see :class:`BundleConfig`; its ``options`` are a :class:`HyperConfig`'s.
        tensors: tensors by name.
        source: where the tensors come from, with the resolved commit.
        card: text of README.md; default: generated on saving.

    Raises:
        BundleError: if a tensor is missing, unknown, or of another shape than the config says.

    Examples:
        >>> import tempfile
        >>> small = HyperConfig("logah", hid=16, layers=1, heads=2, rank=4, max_ck=512)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     HyperNetwork.of(GraphHyperNetwork(small)).save_pretrained(folder)
        ...     HyperNetwork.from_pretrained(folder).hyper_config.rank
        4
    """

    kind: ClassVar[str] = "hypernetwork"

    @property
    def hyper_config(self) -> HyperConfig:
        """Its kind and sizes."""
        return HyperConfig.from_dict(self.config.options)

    @classmethod
    def of(
        cls,
        hypernet: GraphHyperNetwork,
        *,
        licence: str = "Apache-2.0",
        provenance: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> HyperNetwork:
        """Return the bundle of a network, its weights copied.

        Args:
            hypernet: a network.
            licence: SPDX identifier.
            provenance: facts about the training, plain JSON.
            dtype: dtype of the bundle's tensors.
        """
        options = hypernet.config
        config = BundleConfig(
            kind=cls.kind,
            method=options.kind,
            options=options.to_dict(),
            sizes={"hid": options.hid, **({"rank": options.rank} if options.rank else {})},
            depth=options.layers,
            licence=licence,
            provenance=dict(provenance or {}),
        )
        tensors = {
            name: value.detach().cpu().to(dtype).clone()
            for name, value in hypernet.state_dict().items()
        }
        return cls(config, tensors)

    def module(self) -> GraphHyperNetwork:
        """Return the network, on the CPU, fp32, in eval mode."""
        with torch.device("meta"):
            network = GraphHyperNetwork(self.hyper_config)
        network.load_state_dict({k: v.float() for k, v in self.tensors.items()}, assign=True)
        return network.eval()

    _check_tensors = staticmethod(_check_tensors)
    _check_expansion = staticmethod(_check_expansion)
