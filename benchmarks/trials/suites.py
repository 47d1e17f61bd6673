"""Which runs make a table: suites of cases, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from trials.methods import GROWING, METHODS, SHRINKING
from trials.scales import Scale
from trials.sources import Source


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        suite: it belongs to.
        method: of :data:`trials.methods.METHODS`.
        templates: width of the templates, in channels.
        width: of the target.
        depth: of the target.
        seed: of the run.
        data: a downstream pack; empty is the sources' own data.
        budget: of the training, in short budgets.
        points: how often accuracy is measured on the way, on validation images.
        lr: of the training; 0 takes the scale's.
        test: whether the row is final: read on test images, once.
        fit: steps of fitted scalers; 0 takes the scale's.
        ancestor: width and depth of the plain model that the target inherits from.
    """

    suite: str
    method: str
    templates: int
    width: int
    depth: int
    seed: int
    data: str = ""
    budget: float = 1.0
    points: int = 1
    lr: float = 0.0
    test: bool = True
    fit: int = 0
    ancestor: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Of its result file."""
        later = {"fit": 0, "ancestor": (0, 0)}
        given = {key: value for key, value in asdict(self).items() if later.get(key) != value}
        text = json.dumps(given, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def sources(self, scale: Scale) -> tuple[Source, ...]:
        """Return what must be trained before it."""
        own = METHODS[self.method].sources(scale.preset(self.templates), self.depth)
        return (*own, self.inherited) if self.ancestor[0] else own

    @property
    def inherited(self) -> Source:
        """Return the plain model that the target inherits from."""
        width, depth = self.ancestor
        return Source("vit", self.templates, depth, embed=width if width != self.templates else 0)


#: Of one ancestor's weights: those that are close to the best, which get a second rate.
RATED = (
    "Weight Selection, whole heads", "weight subcloning", "Torch-Pruning", "Net2Net",
    "bert2BERT, FPI", "LiGO, untrained operator", "LiGO, 100 steps", "templates of the ancestor",
    "project_from", "project_from, calibrated",
)  # fmt: skip

RANDOM = ("He", "timm default", "Mimetic")
LEARNGENES = ("Share Init", "Heur-LG", "Auto-LG", "TLEG")
PUBLISHED = ("WAVE, linear", "WAVE, linear + fitted")
WAVES = (*PUBLISHED, "WAVE, interpolate", "WAVE, interpolate + fitted")


def _cases(
    scale: Scale,
    suite: str,
    methods: Sequence[str],
    sizes: Callable[[int], Sequence[tuple[int, int]]],
    *,
    every_seed: bool = False,
    **options: object,
) -> Iterator[Case]:
    """Yield methods x sizes ``(width, depth)`` x seeds; all seeds for the main methods alone."""
    for width in (preset.width for preset in scale.presets):
        for method in methods:
            seeds = scale.seeds if every_seed or METHODS[method].main else scale.seeds[:1]
            for size in sizes(width):
                for seed in seeds:
                    yield Case(suite, method, width, *size, seed, **options)  # pyright: ignore


def depth(scale: Scale) -> Iterator[Case]:
    """Table 1: other depths at the templates' own width."""
    methods = (*RANDOM, *LEARNGENES, *WAVES, "WAVE, mixed depths", "outright")
    yield from _cases(scale, "depth", methods, lambda w: [(w, d) for d in scale.depths])


def width(scale: Scale) -> Iterator[Case]:
    """Table 2: other widths at 6 blocks; the widest with the first seed alone."""
    methods = (*RANDOM, "TLEG", *WAVES)
    for case in _cases(scale, "width", methods, lambda w: [(o, 6) for o in scale.widths[w]]):
        if case.seed == scale.seeds[0] or case.width < max(scale.widths[case.templates]):
            yield case


def deeper(scale: Scale) -> Iterator[Case]:
    """Table D.2: many more blocks than the auxiliary model has; the first seed alone."""
    methods = ("timm default", "TLEG", *WAVES, "WAVE, mixed depths")
    for case in _cases(scale, "deeper", methods, lambda w: [(w, d) for d in scale.deeper]):
        if case.seed == scale.seeds[0]:
            yield case


def _both(*names: str) -> tuple[str, ...]:
    """Return names of methods, and those of their published starts."""
    return (*names, *(f"{name}, linear + fitted" for name in names))


def components(scale: Scale) -> Iterator[Case]:
    """Table 5: which part of what is transferred is worth how much."""
    names = ("outside alone", "qkv alone", "proj alone", "MLP alone", "matrices", "blocks alone")
    names += ("all but patch and pos", "all but the head")
    yield from _cases(scale, "components", _both(*names), lambda w: [(w, 6)], every_seed=True)


def templates(scale: Scale) -> Iterator[Case]:
    """Table 6: number and size of templates."""
    names = _both("half the templates", "four times the templates, of half the size")
    yield from _cases(scale, "templates", names, lambda w: [(w, 6)], every_seed=True)


def transfer(scale: Scale) -> Iterator[Case]:
    """Table 3: downstream tasks from the one template set, at 6 blocks; fitted ones once."""
    methods = ("timm default", "Mimetic", "Auto-LG", "TLEG", *WAVES, "all blocks")
    for pack in scale.packs:
        for case in _cases(scale, "transfer", methods, lambda w: [(w, 6)], data=pack):
            if case.seed == scale.seeds[0] or "fitted" not in case.method:
                yield case


def curves(scale: Scale) -> Iterator[Case]:
    """Figure 3c, at 8 blocks, and what as many short budgets reach, each with its own schedule."""
    budgets = {
        "timm default": (1.0, 2.0, 4.0, 8.0, float(scale.budget)),
        "TLEG": (1.0, 4.0),
        "WAVE, interpolate": (0.25, 0.5, 1.0, 2.0, 4.0),
    }
    for method, times in budgets.items():
        for budget in times:
            for case in _cases(
                scale, "curves", [method], lambda w: [(w, 8)], budget=budget, points=10
            ):
                if case.seed == scale.seeds[0]:
                    yield case


def fit(scale: Scale) -> Iterator[Case]:
    """How many steps scalers must be fitted, by where they start, at 8 blocks."""
    for method in (WAVES[1], WAVES[3]):
        for steps in (scale.fit_steps // 4, scale.fit_steps, scale.fit_steps * 4):
            for case in _cases(scale, "fit", [method], lambda w: [(w, 8)], fit=steps):
                if case.seed == scale.seeds[0]:
                    yield case


def tune(scale: Scale) -> Iterator[Case]:
    """Learning rates of targets, on validation images alone."""
    for method in ("timm default", "TLEG", *WAVES[1:3]):
        for lr in (5e-4, 1e-3, 2e-3, 4e-3):
            for case in _cases(scale, "tune", [method], lambda w: [(w, 8)], lr=lr, test=False):
                if case.seed == scale.seeds[0]:
                    yield case


def shrink(scale: Scale) -> Iterator[Case]:
    """From one ancestor to half and two thirds of its width, half its depth, and both."""
    for old in scale.shrink_from:
        width, depth = old
        sizes = [
            (width // 2, depth), (width * 2 // 3, depth), (width, depth // 2),
            (width // 2, depth // 2),
        ]  # fmt: skip
        names = ("timm default", "timm's truncation", *SHRINKING)
        yield from _inherited(scale, "shrink", names, old, sizes)


def choices(scale: Scale) -> Iterator[Case]:
    """What the default shrinks by, with and without data: on validation images alone."""
    names = (
        "Weight Selection, whole heads", "Weight Selection, first blocks",
        "Weight Selection, first and last", "Weight Selection, first and last, rescaled",
        "calibrated, ridge 1e-3", "calibrated, ridge 1e-2", "calibrated, ridge 1e-1",
    )  # fmt: skip
    for width, depth in scale.shrink_from:
        for size in ((width, depth // 2), (width // 2, depth // 2)):
            for name in names:
                for lr in (0.0, scale.lr / 2):
                    yield Case(
                        "choices", name, scale.presets[0].width, *size, scale.seeds[0], lr=lr,
                        test=False, ancestor=(width, depth),
                    )  # fmt: skip


def grow(scale: Scale) -> Iterator[Case]:
    """From one ancestor to twice and one and a half times its width, twice its depth, and both."""
    for old in scale.grow_from:
        width, depth = old
        sizes = [
            (width * 2, depth), (width * 3 // 2, depth), (width, depth * 2),
            (width * 2, depth * 2),
        ]  # fmt: skip
        yield from _inherited(scale, "grow", ("timm default", *GROWING), old, sizes)


def _inherited(
    scale: Scale,
    suite: str,
    methods: Sequence[str],
    ancestor: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
) -> Iterator[Case]:
    templates = scale.presets[0].width
    for name in methods:
        method = METHODS[name]
        for size in sizes:
            if method.fits is None or method.fits(ancestor, size):
                for seed in scale.seeds if method.main else scale.seeds[:1]:
                    for lr in (0.0, scale.lr / 2) if name in RATED else (0.0,):
                        yield Case(suite, name, templates, *size, seed, lr=lr, ancestor=ancestor)
    # what a start is worth in steps from scratch
    for budget in (4.0, float(scale.budget)):
        first = (templates, *sizes[0], scale.seeds[0])
        yield Case(suite, "timm default", *first, budget=budget, ancestor=ancestor)


SUITES: Mapping[str, Callable[[Scale], Iterator[Case]]] = {
    suite.__name__: suite
    for suite in (
        depth,
        width,
        deeper,
        components,
        templates,
        fit,
        transfer,
        curves,
        shrink,
        choices,
        grow,
        tune,
    )
}
