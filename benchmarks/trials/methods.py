"""Ways to start a target: each is one line of `METHODS`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import weightinit as wi
from trials.peers import pruned
from trials.sources import Lab, Source
from weightinit.inherit.method import Method as ProjectionMethod
from weightinit.registry import get_method
from weightinit.templates.compose import Scalers
from weightinit.templates.extract import auto_lg, heur_lg
from weightinit.training.images import ImageData
from weightinit.training.presets import Preset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Target:
    """A model to start.

    Args:
        model: with timm's own random weights.
        width: of the templates it is made from.
        data: that it will be trained on.
        seed: of every draw.
        fit_steps: of scalers that are fitted.
        ancestor: that it inherits from.
    """

    model: nn.Module
    width: int
    data: ImageData
    seed: int
    fit_steps: int = 0
    ancestor: Source | None = None

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return wi.anatomy(self.model).depth


@dataclass
class Started:
    """What starting a target took.

    Args:
        transferred: numbers that came from the source.
        scalers: numbers that were fitted on data.
        fit_seconds: spent on that.
    """

    transferred: int = 0
    scalers: int = 0
    fit_seconds: float = 0.0


@dataclass(frozen=True)
class Method:
    """One way to start a target.

    Args:
        start: fills ``target.model`` in place.
        sources: from a preset and a target's depth to what must be trained before.
        learned: whether the weights were learned: such targets train at ``scale.lr``.
        main: whether it is run with every seed.
        trains: whether the target is trained; otherwise its source is the target, with the full
            budget.
        fits: whether it goes from (width, depth) to another; None is always.
        inherits: whether it needs an ancestor.
    """

    start: Callable[[Target, Lab], Started]
    sources: Callable[[Preset, int], tuple[Source, ...]] = lambda preset, depth: ()
    learned: bool = True
    main: bool = False
    trains: bool = True
    fits: Callable[[tuple[int, int], tuple[int, int]], bool] | None = None
    inherits: bool = False


def timm_default(target: Target, lab: Lab) -> Started:
    """Leave timm's own random weights."""
    return Started()


def he(target: Target, lab: Lab) -> Started:
    """Draw every matrix as torch.nn.init.kaiming_normal_ does; biases are 0."""
    generator = torch.Generator().manual_seed(target.seed)
    for module in target.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return Started()


def mimetic(target: Target, lab: Lab) -> Started:
    """Draw attention in closed form (Trockman and Kolter), all else as by torch.nn.init."""
    wi.init_mimetic(target.model, generator=torch.Generator().manual_seed(target.seed))
    return Started()


def from_templates(
    target: Target,
    lab: Lab,
    *,
    kind: str,
    scalers: Scalers = "interpolate",
    fit: bool = False,
    keep: tuple[str, ...] = (),
) -> Started:
    """Compose the target from a trained template set, its scalers fitted first or not."""
    return _fill(target, lab, lab.bundle(Source(kind, target.width)), scalers, fit, keep)


def cut(
    target: Target, lab: Lab, *, how: Callable[..., wi.TemplateBundle], layers: int | None = None
) -> Started:
    """Take whole blocks of a plain model that was trained like the templates."""
    source = lab.model(_ancestor_vit(lab.scale.preset(target.width)))
    return _fill(target, lab, how(source, layers=layers or wi.anatomy(source).depth))


def outright(target: Target, lab: Lab) -> Started:
    """Be the plain model of the target's size that had the full budget."""
    source = lab.model(Source("vit", target.width, target.depth))
    target.model.load_state_dict(source.state_dict())
    return Started(transferred=sum(p.numel() for p in source.parameters()))


def truncated(target: Target, lab: Lab) -> Started:
    """Load the ancestor's first blocks, as timm does for a smaller depth."""
    assert target.ancestor is not None
    own = target.model.state_dict()
    source = {k: v for k, v in lab.model(target.ancestor).state_dict().items() if k in own}
    target.model.load_state_dict(source)
    return Started(transferred=sum(value.numel() for value in source.values()))


#: Images that methods may look at, without labels: a part of the short budget's 15,360.
CALIBRATION = {"steps": range(10), "batch_size": 128, "augment": "none"}


def projected(
    target: Target, lab: Lab, *, method: str, calibrated: bool = True, **options: object
) -> Started:
    """Inherit from the ancestor by one of the methods of project_from."""
    assert target.ancestor is not None
    chosen = replace(get_method(method), **options)  # pyright: ignore[reportArgumentType]
    return _inherit(target, lab, chosen, calibrated=calibrated)


def _inherit(target: Target, lab: Lab, method: ProjectionMethod, *, calibrated: bool) -> Started:
    assert target.ancestor is not None
    ancestor = lab.model(target.ancestor)
    stream = lab.data().batches(**CALIBRATION, seed=target.seed)
    wi.project_from(
        ancestor,
        target.model,
        method=method,
        calibration=[images for images, _ in stream] if calibrated else "none",
        generator=torch.Generator().manual_seed(target.seed),
    )
    return Started(transferred=sum(p.numel() for p in ancestor.parameters()))


def trained(target: Target, lab: Lab, *, fit: Callable[..., ProjectionMethod]) -> Started:
    """Inherit by a method whose own parameters are trained first: LiGO, FINE."""
    assert target.ancestor is not None
    began = time.perf_counter()
    method = fit(lab.model(target.ancestor), target.model, _steps(target, lab, 100), steps=100)
    seconds = time.perf_counter() - began
    started = _inherit(target, lab, method, calibrated=False)
    return replace(started, fit_seconds=seconds)


def extracted(target: Target, lab: Lab) -> Started:
    """Compose the target from templates that were found in the ancestor without data."""
    assert target.ancestor is not None
    return _fill(target, lab, wi.extract_templates(lab.model(target.ancestor)))


def torch_pruning(target: Target, lab: Lab) -> Started:
    """Start from what Torch-Pruning leaves of the ancestor; it sees the images' labels too."""
    assert target.ancestor is not None
    stream = list(lab.data().batches(**CALIBRATION, seed=target.seed))
    state = pruned(lab.model(target.ancestor), target.model, stream)
    target.model.load_state_dict(state)
    return Started(transferred=sum(value.numel() for value in state.values()))


def _fill(
    target: Target,
    lab: Lab,
    bundle: wi.TemplateBundle,
    scalers: Scalers = "interpolate",
    fit: bool = False,
    keep: tuple[str, ...] = (),
) -> Started:
    started = Started(transferred=transferred(bundle))
    if fit:
        began = time.perf_counter()
        bundle = fitted(target, lab, bundle, scalers)
        started.fit_seconds = time.perf_counter() - began
        started.scalers = bundle.template_config.num_scalers(wi.anatomy(target.model))
        scalers = "fitted"
    generator = torch.Generator().manual_seed(target.seed)
    wi.init_from_templates(target.model, bundle, scalers=scalers, keep=keep, generator=generator)
    return started


def transferred(bundle: wi.TemplateBundle) -> int:
    """Return how many numbers a bundle gives to every target: its templates and what is outside."""
    parts = ("templates.", "outside.")
    return sum(t.numel() for name, t in bundle.tensors.items() if name.startswith(parts))


def fitted(
    target: Target, lab: Lab, bundle: wi.TemplateBundle, scalers: Scalers
) -> wi.TemplateBundle:
    """Fit scalers to a target's size with cross-entropy (Eq. 8)."""
    scale = lab.scale
    target.model.to(DEVICE)
    found = wi.fit_scalers(
        target.model,
        bundle,
        _steps(target, lab, target.fit_steps),
        steps=target.fit_steps,
        lr=scale.fit_lr,
        scalers=scalers,
        progress=False,
    )
    target.model.cpu()
    return found


def _steps(target: Target, lab: Lab, steps: int) -> Callable[[nn.Module], Tensor]:
    """Return a step of cross-entropy on the next batch, for as many steps."""
    stream: Iterator[tuple[Tensor, Tensor]] = target.data.batches(
        range(steps),
        batch_size=lab.scale.short.batch_size,
        augment="light",
        seed=1000 + target.seed,
    )

    def step(module: nn.Module) -> Tensor:
        images, targets = (tensor.to(DEVICE) for tensor in next(stream))
        return functional.cross_entropy(module(images), targets)

    return step


def _set(kind: str) -> Callable[[Preset, int], tuple[Source, ...]]:
    return lambda preset, depth: (Source(kind, preset.width),)


def _ancestor_vit(preset: Preset) -> Source:
    return Source("vit", preset.width, preset.auxiliary.kwargs["depth"])


def _templates(kind: str, *, main: bool = False, **options: object) -> Method:
    return Method(partial(from_templates, kind=kind, **options), _set(kind), main=main)


def _cut(how: Callable[..., wi.TemplateBundle], layers: int | None = None) -> Method:
    cutting = partial(cut, how=how, layers=layers)
    return Method(cutting, lambda preset, depth: (_ancestor_vit(preset),))


#: What the blocks hold, and what is outside of them, by role.
BLOCKS = (
    "norm1", "norm2", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
    "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
)  # fmt: skip
OUTSIDE = ("patch", "pos", "norm", "head")
MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def _projected(
    method: str,
    fits: Callable[..., bool] | None = None,
    *,
    main: bool = True,
    **options: object,
) -> Method:
    starting = partial(projected, method=method, **options)
    return Method(starting, fits=fits, main=main, inherits=True)


def _narrower(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether the width shrinks and the depth stays."""
    return new[0] < old[0] and new[1] == old[1]


def _doubled(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether every size is halved, kept or doubled."""
    return all(a in (b, 2 * b) or b == 2 * a for a, b in zip(old, new, strict=True))


def _both(name: str, kind: str = "wave", **options: Any) -> dict[str, Method]:
    """Return two starts of a table's row: ours, and as published with fitted scalers."""
    published = _templates(f"{kind}-published", scalers="linear", fit=True, **options)
    return {name: _templates(kind, **options), f"{name}, linear + fitted": published}


def _parts(name: str, *taken: str) -> dict[str, Method]:
    return _both(name, keep=tuple(role for role in BLOCKS + OUTSIDE if role not in taken))


#: By the name that tables show.
METHODS: Mapping[str, Method] = {
    "He": Method(he, learned=False),
    "timm default": Method(timm_default, learned=False, main=True),
    "Mimetic": Method(mimetic, learned=False),
    "Share Init": _templates("share"),
    "Heur-LG": _cut(heur_lg, 3),
    "Auto-LG": _cut(auto_lg, 4),
    "TLEG": _templates("tleg", main=True),
    # as published: the auxiliary model's scalers start at Eq. B.1 too
    "WAVE, linear": _templates("wave-published", scalers="linear", main=True),
    "WAVE, linear + fitted": _templates("wave-published", scalers="linear", fit=True, main=True),
    "WAVE, interpolate": _templates("wave", main=True),
    "WAVE, interpolate + fitted": _templates("wave", fit=True, main=True),
    # trained at several depths at once, as the shipped bundles are
    "WAVE, mixed depths": _templates("wave-mixed", main=True),
    "outright": Method(
        outright, lambda preset, depth: (Source("vit", preset.width, depth),), trains=False
    ),
    "all blocks": _cut(auto_lg),
    # Table 5: what is transferred
    **_parts("qkv alone", *OUTSIDE, "attn.qkv.weight"),
    **_parts("proj alone", *OUTSIDE, "attn.proj.weight"),
    **_parts("MLP alone", *OUTSIDE, "mlp.fc1.weight", "mlp.fc2.weight"),
    **_parts("outside alone", *OUTSIDE),
    **_parts("matrices", *OUTSIDE, *MATRICES),
    **_parts("blocks alone", *BLOCKS),
    **_parts("all but patch and pos", *BLOCKS, "norm", "head"),
    **_parts("all but the head", *BLOCKS, "patch", "pos", "norm"),
    # Table 6: number and size of templates
    **_both("half the templates", "wave-fewer"),
    **_both("four times the templates, of half the size", "wave-smaller"),
    # one ancestor
    "timm's truncation": Method(
        truncated,
        fits=lambda old, new: old[0] == new[0] and old[1] >= new[1],
        main=True,
        inherits=True,
    ),
    "Weight Selection, as published": _projected("weight_selection", faithful=True),
    "Weight Selection, whole heads": _projected("weight_selection", depth="uniform"),
    "BoT": _projected("bot", _doubled),
    "stacking": _projected("stacking", lambda old, new: old[0] == new[0], depth="stack"),
    "interlacing": _projected("stacking", lambda old, new: old[0] == new[0], depth="interlace"),
    "Net2Net": _projected("net2net"),
    "bert2BERT, FPI": _projected("bert2bert", mode="fpi"),
    "bert2BERT, AKI": _projected("bert2bert", mode="aki"),
    "HyperCloning": _projected(
        "hypercloning", lambda old, new: new[0] % old[0] == 0 and old[1] == new[1]
    ),
    "LEMON": _projected("lemon"),
    "LiGO, untrained operator": _projected("ligo"),
    "Weight Selection, consecutive": _projected(
        "weight_selection", elements="consecutive", depth="uniform", main=False
    ),
    "Weight Selection, random": _projected(
        "weight_selection", elements="random", depth="uniform", main=False
    ),
    "Weight Selection, first blocks": _projected("weight_selection", main=False),
    "Weight Selection, rescaled": _projected(
        "weight_selection", depth="uniform", rescale=True, main=False
    ),
    "Weight Selection, first and last": _projected(
        "weight_selection", depth="first_last", main=False
    ),
    "Weight Selection, first and last, rescaled": _projected(
        "weight_selection", depth="first_last", rescale=True, main=False
    ),
    "calibrated, ridge 1e-3": _projected("activation", ridge=1e-3, main=False),
    "calibrated, ridge 1e-2": _projected("activation", ridge=1e-2, main=False),
    "calibrated, ridge 1e-1": _projected("activation", ridge=1e-1, main=False),
    "weight subcloning": _projected("subcloning"),
    "FINE": Method(
        partial(trained, fit=wi.fit_fine),
        fits=lambda old, new: old[0] == new[0],
        main=True,
        inherits=True,
    ),
    "LiGO, 100 steps": Method(partial(trained, fit=wi.fit_ligo), main=True, inherits=True),
    "templates of the ancestor": Method(extracted, main=True, inherits=True),
    "Torch-Pruning": Method(torch_pruning, fits=_narrower, main=True, inherits=True),
    "project_from": _projected("auto", calibrated=False),
    "project_from, calibrated": _projected("auto"),
}
#: In the order of the tables.
SHRINKING = (
    "Weight Selection, as published",
    "Weight Selection, whole heads",
    "Weight Selection, consecutive",
    "Weight Selection, random",
    "Weight Selection, first blocks",
    "Weight Selection, rescaled",
    "BoT",
    "FINE",
    "templates of the ancestor",
    "Torch-Pruning",
    "weight subcloning",
    "project_from",
    "project_from, calibrated",
)
GROWING = (
    "stacking", "interlacing", "Net2Net", "bert2BERT, FPI", "bert2BERT, AKI", "HyperCloning",
    "LEMON", "BoT", "FINE", "LiGO, untrained operator", "LiGO, 100 steps",
    "templates of the ancestor", "project_from",
)  # fmt: skip
