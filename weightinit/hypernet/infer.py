"""The configuration of a published hypernetwork, from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightinit.errors import BundleError
from weightinit.hypernet.config import HyperConfig, Kind
from weightinit.hypernet.encoder import VOCABULARIES, channel_bins

__all__ = ["Shapes", "inferred"]

Shapes = Mapping[str, tuple[int, ...]]
#: Rows of the embedding of kernel sizes, by the largest kernel: of CIFAR-10 and of ImageNet.
KERNELS = {9: 11, 11: 16}
#: The most rows that the embedding of channels has where models classify images.
IMAGES = 392


def inferred(
    shapes: Shapes,
    stated: Mapping[str, Any],
    *,
    max_shape: int | None = None,
    num_classes: int | None = None,
    softmax: bool | None = None,
) -> tuple[HyperConfig, tuple[str, ...]]:
    """Return the config, and the fields that neither the weights nor anybody stated.

    The published loaders guess the number of heads from the width; the edge bias has it exactly.
    Of GHN-3 everything is in the weights; a low-rank decoder does not say which sizes it was
    trained to predict (``max_shape``), nor an encoder alone the number of classes, and no file
    whether graphs had softmax nodes. ``stated`` is the ``config`` of the file, in the published
    code's words; arguments come before it.

    Raises:
        BundleError: if they are no hypernetwork's, or contradict what is asked for.

    Examples:
        >>> import torch
        >>> from weightinit.hypernet.network import GraphHyperNetwork
        >>> with torch.device("meta"):
        ...     state = GraphHyperNetwork(HyperConfig.pith()).state_dict()
        >>> config, assumed = inferred({name: tuple(t.shape) for name, t in state.items()}, {})
        >>> config == HyperConfig.pith(faithful=True), assumed
        (True, ('num_classes', 'max_shape', 'softmax'))
    """
    if stated.get("weight_norm") is False or stated.get("use_1d_decoder") is True:
        raise BundleError(
            "it was trained without weight_norm, or with use_1d_decoder, which no published "
            "setting does and weightinit does not support: use another checkpoint"
        )
    task = "gnn.0.TEN.fc_gamma.weight"
    lowrank = "decoder.mlp.fc.4.weight" in shapes
    kind: Kind = "ghn3" if not lowrank else "tal" if task in shapes else "logah"
    if "fusion_weight" in shapes:
        kind = "pith"
    primitives, hid = _matrix(shapes, "embed.weight")
    facts: dict[str, Any] = {
        "kind": kind,
        "hid": hid,
        "primitives": primitives,
        "layers": sum(name.startswith("gnn.") and name.endswith(".ln1.weight") for name in shapes),
        "heads": _matrix(shapes, "gnn.0.attn.proj_e.2.weight")[0],
        "layernorm": "ln.weight" in shapes,
        "faithful": True,
        "task_dim": _matrix(shapes, task)[1] if task in shapes else 0,
    }
    unsaid: list[str] = []

    def choose(name: str, given: Any, usual: int) -> Any:
        value = stated.get(name) if given is None else given
        if value is None:
            unsaid.append(name)
        return usual if value is None else value

    if lowrank:
        facts |= _low_rank(shapes, kind)
        facts["num_classes"] = classes = choose("num_classes", num_classes, 1000)
        usual = 4096 if kind == "pith" else 2048
        if kind == "logah" and (language := _language(shapes, classes)) != "none":
            facts["language"] = language
            # Its decoder has 16 rows for each one that it was trained to predict.
            usual = max(facts["max_ck"] // 16, 1)
        facts["max_shape"] = _three(choose("max_shape", max_shape, usual), shapes)
    else:
        facts |= _convolutional(shapes, hid)
        for name, asked, fact in (
            ("max_shape", max_shape, facts["max_shape"][0]),
            ("num_classes", num_classes, facts["num_classes"]),
        ):
            if asked not in (None, fact):
                raise BundleError(f"{name} {asked} was asked for, and the weights say {fact}")
    facts["softmax"] = choose("softmax", softmax, False)
    return HyperConfig(**facts), tuple(unsaid)


def _language(shapes: Shapes, classes: Any) -> str:
    """Return the class for language models whose vocabularies the table of channels has."""
    rows = _matrix(shapes, "shape_enc.embed_channel.weight")[0]
    if type(classes) is not int or rows <= IMAGES:
        return "none"
    fitting = (n for n in VOCABULARIES if rows == len(channel_bins(classes, n)) + 1)
    return next(fitting, "none")


def _low_rank(shapes: Shapes, kind: Kind) -> dict[str, Any]:
    """Return what the low-rank decoders say."""
    wide = "decoder.l2_step1.weight" in shapes
    facts: dict[str, Any] = {
        "rank": _matrix(shapes, f"decoder.l2{'_step1' if wide else ''}.weight")[1],
        "max_ck": _matrix(shapes, f"decoder.l2{'_step3' if wide else ''}.weight")[0],
        "dead_layer": "decoder.l1.weight" in shapes,
    }
    if kind == "pith":
        both = "decoderpq.l2_step1.weight" in shapes
        facts["alignment"] = "first"
        facts["pathway"] = "dual" if "decoderpq.mlp.fc.4.weight" in shapes else "shared"
        facts["expansion"] = "both" if both else "original" if wide else "none"
    return facts


def _convolutional(shapes: Shapes, hid: int) -> dict[str, Any]:
    """Return what GHN-3's decoder says: rows by its class layer, kernel by its first layer."""
    classes, rows = _matrix(shapes, "decoder.class_layer_predictor.1.weight")
    columns = _matrix(shapes, "decoder.conv.2.weight")[0] // max(rows, 1)
    side = math.isqrt(_matrix(shapes, "decoder.fc.0.weight")[0] // max(4 * hid, 1))
    return {"num_classes": classes, "max_shape": (rows, columns, side)}


def _three(rows: Any, shapes: Shapes) -> tuple[Any, ...]:
    """Return rows, columns and kernel size of one number, or of the published code's four."""
    if isinstance(rows, (tuple, list)):
        if len(rows) not in (3, 4):
            raise BundleError(f"max_shape has {len(rows)} sizes: use rows, columns, kernel size")
        return tuple(rows[:3])
    found = _matrix(shapes, "shape_enc.embed_spatial.weight")[0]
    if found not in KERNELS:
        raise BundleError(
            f"shape_enc.embed_spatial.weight has {found} rows: the published models have one of "
            f"{sorted(KERNELS)}, another checkpoint must state its max_shape in a config"
        )
    return rows, rows, KERNELS[found]


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        raise BundleError(
            f"{name} is {'missing' if shape is None else f'of shape {list(shape)}'}: it is no "
            "state dict of GHN-3, LoGAH, TAL or PITH. Pass another file, or key= of the dict in it"
        )
    return shape[0], shape[1]
