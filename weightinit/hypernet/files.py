"""Hypernetworks as files: config.json and model.safetensors in a folder or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from weightinit.errors import BundleError
from weightinit.files.bundle import Bundle, Wanted, copies
from weightinit.files.config import BundleConfig
from weightinit.hypernet.config import HyperConfig
from weightinit.hypernet.network import GraphHyperNetwork

__all__ = ["HyperNetwork"]

#: Rows of one tensor of a ViT-S: its patch embedding, 384 channels of 16 rows.
MOST_ROWS = 384 * 16
#: How the weights get into a model, by kind of hypernetwork.
USES = {
    "tal": "wi.init_from_hypernet(model, {name}, task=images, ancestor=ancestor)",
    "pith": "wi.project_from(ancestor, model, method=wi.PITH({name}))  # any name, file or module",
}
GPT = """import transformers, weightinit as wi
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=9))"""
VIT = """import timm, weightinit as wi
model = timm.create_model("vit_small_patch16_224", {size})"""


def _config(config: BundleConfig) -> HyperConfig:
    """Return the hypernetwork's own config, checked."""
    options = HyperConfig.from_dict(config.options)
    if options.kind != config.method:
        raise BundleError(
            f"the bundle's method is {config.method!r} and its options are of {options.kind!r}: "
            "use the same"
        )
    return options


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
        return _config(self.config)

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
        return cls(config, copies(hypernet.state_dict(), dtype))

    def module(self) -> GraphHyperNetwork:
        """Return the network, on the CPU, fp32, in eval mode."""
        with torch.device("meta"):
            network = GraphHyperNetwork(self.hyper_config)
        network.load_state_dict({k: v.float() for k, v in self.tensors.items()}, assign=True)
        return network.eval()

    @classmethod
    def wanted(cls, config: BundleConfig) -> Mapping[str, Wanted]:
        """Return the shapes of the network's state dict."""
        with torch.device("meta"):
            network = GraphHyperNetwork(_config(config))
        return {name: tuple(value.shape) for name, value in network.state_dict().items()}

    @classmethod
    def about(cls, config: BundleConfig, name: str) -> tuple[str, str, str]:
        """Return the card's own words: the call that fills a model, by kind of hypernetwork."""
        found, size = _config(config), "depth=9, num_classes=100"
        if found.max_ck < MOST_ROWS:
            size = "img_size=32, patch_size=8, embed_dim=96, num_heads=6, num_classes=10"
        model = GPT if found.primitives == 18 else VIT.format(size=size)
        use = USES.get(found.kind, "wi.init_from_hypernet(model, {name})").format(name=name)
        sizes = " ".join(f"{label}={size}" for label, size in config.sizes.items())
        trained = "the released code" if found.faithful else "weightinit"
        return (
            f"Weight hypernetwork ({config.method})",
            f"{model}\n{use}",
            f"A hypernetwork with an encoder of {config.depth} blocks, sizes {sizes}. It was "
            f"trained by the rules of {trained}, by which it predicts.",
        )
