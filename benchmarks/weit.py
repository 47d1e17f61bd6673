"""WeiT on real work: what its templates are worth to models of other sizes, in four domains.

    python benchmarks/weit.py --suite vit                         # CPU, hours; resumes
    python benchmarks/weit.py --suite convnext dit control --device cuda --jobs 12
    python benchmarks/weit.py --suite vit --smoke                 # does everything start?
    python benchmarks/weit.py --suite dit --start WeiT --seeds 1 --ship my-bundle    # its templates

A source (a template set, a plain model) is trained once a seed for the whole budget. A target gets
its first weights from a source, is scored at once, then trained for a short budget at each of the
domain's learning rates; validation data pick the rate, and the score is that on test data. Every
source and every run leaves a file under ``--work``, so a command that was stopped goes on there.

The paper's code and full text were not available. Masks by prefix, truncation and repetition follow
published descriptions; the sampling of sizes, and the rules of convolutions and adaLN, are ours.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import schema
import torch
from domains.domain import Domain, Loss, Part, Shape, learn
from safetensors.torch import load_model, save_model
from torch import nn
from trials.run import write

import weightinit as wi
from weightinit.errors import WeightInitError
from weightinit.registry import MethodName
from weightinit.templates.compose import Scalers

SUITES = {
    "vit": ("domains.images", "ViT"),
    "convnext": ("domains.images", "ConvNeXt"),
    "dit": ("domains.dit", "Diffusion"),
    "control": ("domains.control", "Balance"),
}
SEEDS = (1, 2, 3)


def domain(suite: str, device: str, cache: Path, smoke: bool) -> Domain:
    """Return a domain with its data loaded."""
    module, name = SUITES[suite]
    kind = getattr(__import__(module, fromlist=[name]), name)
    if smoke:
        kind = type(kind.__name__, (kind,), {"steps": 3, "short": 2, "batch": 8, "fits": (2, 1e-2)})
    return kind(device, cache)


# --- sources -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a source is.

    Args:
        layers: how many layers' worth of templates; 0 is a plain, unconstrained model.
        sizes: ``"none"`` (no masks), ``"domain"`` (the domain's sizes), or ``"widths"``
            (quarters of the width).
        policy: how sizes are drawn.
        teacher: whether a teacher's soft labels are learned too.
        method: of the template set.
        start: of the scalers.
        shape: the size, where it is not the domain's.
        share: of the domain's steps.
    """

    layers: int = 2
    sizes: str = "none"
    policy: Literal["half", "sandwich"] = "half"
    teacher: bool = False
    method: str = "weit"
    start: str | None = None
    shape: Shape | None = None
    share: float = 1


SOURCES = {
    "WeiT": Source(sizes="domain"),
    "no masks": Source(),
    "plain": Source(layers=0),
    "WeiT, sandwich": Source(sizes="domain", policy="sandwich"),
    # Two passes a step, where the policy "half" makes one.
    "WeiT, sandwich, half the steps": Source(sizes="domain", policy="sandwich", share=0.5),
    "WeiT, with a teacher": Source(sizes="domain", teacher=True),
    "WAVE": Source(teacher=True, method="wave"),
    "WAVE, linear": Source(teacher=True, method="wave", start="linear"),
    # From labels alone, as WeiT, so that the two differ in nothing else.
    "TLEG": Source(method="tleg"),
    "WeiT, 1 layer": Source(layers=1, sizes="domain"),
    "WeiT, 3 layers": Source(layers=3, sizes="domain"),
    "WeiT, quarters": Source(sizes="widths"),
}


class Lab:
    """Sources of one suite and one seed, trained when they are first needed.

    Args:
        suite: of :data:`SUITES`.
        device: to compute on.
        cache: folder of decoded data.
        work: folder of sources and runs.
        smoke: whether every training takes two steps.
    """

    def __init__(self, suite: str, device: str, cache: Path, work: Path, smoke: bool) -> None:
        self.suite, self.work = suite, work / suite
        self.domain = domain(suite, device, cache, smoke)

    def folder(self, name: str, seed: int) -> Path:
        """Return the folder of a source."""
        slug = "".join(c if c.isalnum() else "-" for c in name.lower())
        return self.work / "sources" / f"{slug}-{seed}"

    def network(self, shape: Shape, seed: int) -> nn.Module:
        """Return a model with its own random weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.domain.build(shape).to(self.domain.device)

    def module(self, name: str, seed: int) -> nn.Module:
        """Return the untrained module of a source."""
        source, domain = SOURCES[name], self.domain
        model = self.network(source.shape or domain.full, seed)
        if not source.layers:
            return model
        seen = wi.anatomy(model, rules=domain.rules)
        if source.method == "weit":
            config = wi.TemplateConfig.of(seen, layers=source.layers)
        elif source.method == "wave":
            config = wi.TemplateConfig.wave(domain.full.width)
        else:
            config = wi.TemplateConfig.layers(source.method, domain.full.width, source.layers)
        options: dict[str, Any] = {}
        if source.sizes != "none":
            widths = (1, 0.75, 0.5, 0.25) if source.sizes == "widths" else domain.sizes.widths
            depths = domain.sizes.depths
            options["sizes"] = wi.Sizes(depths, widths, policy=source.policy, seed=seed)
            options["build"] = lambda size: domain.build(domain.shape(size)).to(domain.device)
        if source.start:
            options["scalers"] = source.start
        generator = torch.Generator().manual_seed(seed)
        options |= {"generator": generator, "rules": domain.rules}
        return wi.constrain(model, config, **options).to(domain.device)

    def train(self, name: str, seed: int) -> None:
        """Train a source, unless it is there already."""
        folder, source, domain = self.folder(name, seed), SOURCES[name], self.domain
        if (folder / "source.json").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        loss: Loss = domain.loss
        if source.teacher:
            teacher = self.teacher()
            loss = domain.taught(teacher)
        module, began = self.module(name, seed), time.perf_counter()
        steps = round(domain.steps * source.share)
        learn(module, loss, domain, steps=steps, lr=domain.source_rate, seed=seed)
        row = {"name": name, "seed": seed, "steps": steps, "lr": domain.source_rate}
        row |= {"seconds": round(time.perf_counter() - began, 1), **domain.scores(module, "test")}
        if isinstance(module, wi.ConstrainedModel):
            module.to_bundle(provenance={"command": "benchmarks/weit.py"}).save_pretrained(folder)
        else:
            save_model(module, str(folder / "model.safetensors"))
        write(row, folder / "source.json")

    def teacher(self) -> nn.Module:
        """Return the teacher of all seeds, which `train_teacher` left."""
        teacher = self.domain.teacher().to(self.domain.device)
        load_model(teacher, self.work / "sources" / "teacher.safetensors")
        return teacher.eval()

    def train_teacher(self) -> None:
        """Train the teacher on labels, unless it is there already."""
        file = self.work / "sources" / "teacher.safetensors"
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = self.domain.teacher().to(self.domain.device)
        steps = min(2500, self.domain.steps)
        learn(net, self.domain.teach, self.domain, steps=steps, lr=1e-3, seed=0)
        save_model(net, str(file))

    def plain(self, seed: int) -> nn.Module:
        """Return the unconstrained model of the auxiliary size."""
        model = self.network(self.domain.full, seed)
        load_model(model, self.folder("plain", seed) / "model.safetensors")
        return model.eval()


def ship(lab: Lab, seed: int, folder: Path) -> dict[str, Any]:
    """Save the suite's WeiT templates in half precision, with a card; return their scores.

    They are those of models of every trained size, composed from what is saved, on validation data.
    """
    domain, trained = lab.domain, wi.TemplateBundle.from_pretrained(lab.folder("WeiT", seed))
    halves = {name: value.half() for name, value in trained.tensors.items()}
    row = json.loads((lab.folder("WeiT", seed) / "source.json").read_text())
    metric = domain.metric[0]
    bundle = wi.TemplateBundle(trained.config, halves, trained.source)

    def score(shape: Shape, part: Part) -> float:
        model = wi.init_from_templates(lab.network(shape, seed), bundle, rules=domain.rules)
        return round(domain.scores(model.eval(), part)[metric], 4)

    seen = wi.anatomy(lab.network(domain.full, seed), rules=domain.rules)
    shapes = dict.fromkeys(map(domain.shape, domain.sizes.of(seen)))
    recipe = {"steps": row["steps"], "batch_size": domain.batch, "lr": row["lr"], "seed": seed}
    auxiliary = {"network": f"{type(domain).__name__} {domain.full}", "recipe": recipe}
    auxiliary |= {"metric": metric, "val": {str(shape): score(shape, "val") for shape in shapes}}
    auxiliary["test"] = score(domain.full, "test")
    card = {
        "command": f"python benchmarks/weit.py --suite {lab.suite} --start WeiT --seeds {seed}",
        "method": "weit",
        "data": {"name": domain.data},
        "ancestor": None,
        "auxiliary": auxiliary,
        "versions": schema.versions(),
    }
    config = replace(trained.config, provenance=card)
    wi.TemplateBundle(config, halves, trained.source).save_pretrained(folder)
    return auxiliary


# --- starts --------------------------------------------------------------------------------------

Start = Callable[[Lab, nn.Module, int], None]


def random(lab: Lab, model: nn.Module, seed: int) -> None:
    """Keep the model's own random weights."""


def templates(
    lab: Lab, model: nn.Module, seed: int, *, source: str, scalers: Scalers | None = None, fit=False
) -> None:
    """Compose from a trained template set, its scalers fitted for this size or by rule."""
    bundle = wi.TemplateBundle.from_pretrained(lab.folder(source, seed))
    if fit:
        generator = torch.Generator(lab.domain.device).manual_seed(seed)
        steps, lr = lab.domain.fits
        bundle = wi.fit_scalers(
            model,
            bundle,
            lambda module: lab.domain.loss(module, generator),
            steps=steps,
            lr=lr,
            scalers=scalers,
            progress=False,
            rules=lab.domain.rules,
        )
        scalers = None
    generator = torch.Generator().manual_seed(seed)
    wi.init_from_templates(
        model, bundle, scalers=scalers, generator=generator, rules=lab.domain.rules
    )


def inherited(lab: Lab, model: nn.Module, seed: int, *, method: MethodName) -> None:
    """Inherit from the plain model by a method's rule."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "rules": lab.domain.rules}
    wi.project_from(lab.plain(seed), model, method=method, **options)


def ligo(lab: Lab, model: nn.Module, seed: int) -> None:
    """Inherit from the plain model by a growth operator that is trained for this target."""
    generator = torch.Generator(lab.domain.device).manual_seed(seed)
    steps, _ = lab.domain.fits
    operator = wi.fit_ligo(
        lab.plain(seed),
        model,
        lambda module: lab.domain.loss(module, generator),
        steps=steps,
        progress=False,
    )
    wi.project_from(lab.plain(seed), model, method=operator, rules=lab.domain.rules)


def smaller(full: Shape, target: Shape) -> bool:
    """Whether a target is nowhere larger than the plain model."""
    return target.width <= full.width and all(
        new <= old for old, new in zip(full.depths, target.depths, strict=True)
    )


def larger(full: Shape, target: Shape) -> bool:
    """Whether a target is nowhere smaller than the plain model."""
    return smaller(target, full)


def anything(full: Shape, target: Shape) -> bool:
    """Every target."""
    return True


#: Start, the sources that it needs, the targets it can do, and whether all seeds run it.
STARTS: dict[str, tuple[Start, tuple[str, ...], Callable[[Shape, Shape], bool], bool]] = {
    "random": (random, (), anything, True),
    "WeiT": (partial(templates, source="WeiT"), ("WeiT",), anything, True),
    "WeiT, fitted": (partial(templates, source="WeiT", fit=True), ("WeiT",), anything, True),
    "no masks": (partial(templates, source="no masks"), ("no masks",), anything, True),
    "no masks, fitted": (
        partial(templates, source="no masks", fit=True), ("no masks",), anything, True,
    ),
    "Weight Selection": (
        partial(inherited, method="weight_selection"), ("plain",), smaller, True,
    ),
    "LEMON": (partial(inherited, method="lemon"), ("plain",), larger, True),
    "BoT": (partial(inherited, method="bot"), ("plain",), larger, False),
    "LiGO": (ligo, ("plain",), anything, True),
    "WeiT, interpolate": (
        partial(templates, source="WeiT", scalers="interpolate"), ("WeiT",), anything, False,
    ),
    "WeiT, linear": (
        partial(templates, source="WeiT", scalers="linear"), ("WeiT",), anything, False,
    ),
    "WeiT, sandwich": (
        partial(templates, source="WeiT, sandwich"), ("WeiT, sandwich",), anything, False,
    ),
    "WeiT, sandwich, half the steps": (
        partial(templates, source="WeiT, sandwich, half the steps"),
        ("WeiT, sandwich, half the steps",), anything, True,
    ),
}  # fmt: skip
#: Of classification with a teacher, and of other template sets.
MORE: dict[str, tuple[Start, tuple[str, ...], Callable[[Shape, Shape], bool], bool]] = {
    "WeiT, with a teacher": (
        partial(templates, source="WeiT, with a teacher"),
        ("WeiT, with a teacher",), anything, True,
    ),
    "WAVE, interpolate": (partial(templates, source="WAVE"), ("WAVE",), anything, True),
    "WAVE, linear": (
        partial(templates, source="WAVE, linear", scalers="linear"),
        ("WAVE, linear",), anything, True,
    ),
    "WAVE, linear, fitted": (
        partial(templates, source="WAVE, linear", scalers="linear", fit=True),
        ("WAVE, linear",), anything, True,
    ),
    "TLEG": (partial(templates, source="TLEG"), ("TLEG",), anything, False),
    "WeiT, 1 layer": (
        partial(templates, source="WeiT, 1 layer"), ("WeiT, 1 layer",), anything, False,
    ),
    "WeiT, 3 layers": (
        partial(templates, source="WeiT, 3 layers"), ("WeiT, 3 layers",), anything, False,
    ),
    "WeiT, quarters": (
        partial(templates, source="WeiT, quarters"), ("WeiT, quarters",), anything, False,
    ),
}  # fmt: skip


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One target, started one way."""

    start: str
    shape: Shape
    seed: int
    long: bool = False

    @property
    def file(self) -> str:
        """Name its result file."""
        slug = "".join(c if c.isalnum() else "-" for c in f"{self.start}-{self.shape}".lower())
        return f"{slug}-{self.seed}{'-long' * self.long}.json"


def starts(suite: str) -> dict[str, Any]:
    """Return the starts of a suite."""
    return STARTS | MORE if suite == "vit" else STARTS


def runs(suite: str, kind: type[Domain], seeds: Sequence[int]) -> Iterator[Run]:
    """Yield the runs of a suite, the long ones last."""
    for seed in seeds:
        for start, (_, _, fits, main) in starts(suite).items():
            for shape in kind.targets if main or seed == seeds[0] else ():
                if fits(kind.full, shape):
                    yield Run(start, shape, seed)
    for seed in seeds:
        for start in ("random", "WeiT"):
            yield Run(start, kind.long, seed, long=True)


def perform(lab: Lab, run: Run) -> dict[str, Any]:
    """Start a target, score it, train it at each rate, and score the best."""
    domain, start = lab.domain, starts(lab.suite)[run.start][0]
    model = lab.network(run.shape, run.seed)
    began = time.perf_counter()
    row: dict[str, Any] = {"name": run.start, "target": str(run.shape), "seed": run.seed}
    row["long"] = run.long
    row["parameters"] = sum(p.numel() for p in model.parameters())
    try:
        start(lab, model, run.seed)
    except WeightInitError as error:
        return row | {"refused": str(error)}
    row["start_seconds"] = round(time.perf_counter() - began, 2)
    at_once = domain.scores(model.eval(), "test")
    steps = domain.steps if run.long else domain.short
    best: tuple[dict[str, float], nn.Module, float] | None = None
    for lr in domain.rates:
        trained = copy.deepcopy(model)
        curve: list[tuple[int, float]] = []

        def after(step: int, trained=trained, curve=curve) -> None:
            if run.long and (step % max(1, steps // 10) == 0 or step == steps // 40):
                found = domain.scores(trained.eval(), "val")[domain.metric[0]]
                curve.append((step, round(found, 4)))

        began = time.perf_counter()
        learn(trained, domain.loss, domain, steps=steps, lr=lr, seed=run.seed, after=after)
        seconds = time.perf_counter() - began
        scores = domain.scores(trained, "val")
        if best is None or domain.better(scores, best[0]):
            best = (scores, trained, lr)
            row |= {"curve": curve, "seconds": round(seconds, 1), "val": scores, "lr": lr}
    assert best is not None
    trained, folder = best[1], lab.work / "sources"
    if run.seed == SEEDS[0]:
        domain.picture(trained, lab.work / "pictures" / run.file.replace("json", "png"))
    row |= {"steps": steps, "at_once": at_once | domain.judged(model, folder)}
    return row | {"trained": domain.scores(trained, "test") | domain.judged(trained, folder)}


_LABS: dict[str, Lab] = {}


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)


def _lab(options: dict[str, Any]) -> Lab:
    suite = options["suite"]
    if suite not in _LABS:
        _LABS[suite] = Lab(**options)
    return _LABS[suite]


def _source(options: dict[str, Any], name: str, seed: int) -> str:
    _lab(options).train(name, seed)
    return f"source {name} {seed}"


def _teacher(options: dict[str, Any]) -> str:
    _lab(options).train_teacher()
    return "teacher"


def _run(options: dict[str, Any], run: Run, file: Path) -> str:
    row = perform(_lab(options), run)
    write(row, file)
    shown = {key: row[key] for key in ("refused", "at_once", "trained", "lr") if key in row}
    return f"{options['suite']} {run.start} {run.shape} {run.seed}: {shown}"


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of plain values: scores by name, a curve as its steps and its scores."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            found |= {f"{key}_{name}": score for name, score in value.items()}
        elif key == "curve":
            found |= {"at": [step for step, _ in value], "curve": [score for _, score in value]}
        else:
            found[key] = value
    return found


def main() -> None:
    """Run, and record one result file a suite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=list(SUITES), nargs="+", default=list(SUITES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--start", nargs="+", help="only these")
    parser.add_argument("--targets", nargs="+", help="only these, such as '64 x 3'")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--seconds", type=float, help="stop before the next piece after so many")
    parser.add_argument("--cache-dir", type=Path, default=Path.home() / ".cache" / "weightinit")
    parser.add_argument("--work", type=Path, help="default: <cache-dir>/weit")
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    parser.add_argument("--record", action="store_true", help="only record what is there")
    parser.add_argument("--ship", type=Path, help="only save the WeiT templates of a suite there")
    parser.add_argument("--smoke", action="store_true", help="two steps of all, not recorded")
    given = parser.parse_args()
    began, load = time.monotonic(), schema.machine()["load"]
    work = given.work or given.cache_dir / ("weit" + "-smoke" * given.smoke)
    if given.ship:
        lab = Lab(given.suite[0], given.device, given.cache_dir, work, given.smoke)
        print(ship(lab, given.seeds[0], given.ship))
        return
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    pieces: list[list[tuple[Any, ...]]] = [[], [], []]
    todo: dict[str, list[Path]] = {}
    for suite in given.suite:
        options = {"suite": suite, "device": given.device, "cache": given.cache_dir}
        options |= {"work": work, "smoke": given.smoke}
        module, name = SUITES[suite]
        kind = getattr(__import__(module, fromlist=[name]), name)
        wanted = [
            run
            for run in runs(suite, kind, given.seeds)
            if (given.start is None or run.start in given.start)
            and (given.targets is None or run.long or str(run.shape) in given.targets)
        ]
        folder = work / suite / "runs"
        todo[suite] = [folder / run.file for run in wanted]
        needed = dict.fromkeys(
            (source, run.seed) for run in wanted for source in starts(suite)[run.start][1]
        )
        if kind.judge or any(SOURCES[source].teacher for source, _ in needed):
            pieces[0].append((_teacher, options))
        pieces[1] += [(_source, options, *source) for source in needed]
        pieces[2] += [
            (_run, options, run, folder / run.file)
            for run in wanted
            if not (folder / run.file).exists()
        ]
    with ProcessPoolExecutor(
        given.jobs, get_context("spawn"), initializer=_begin, initargs=(threads,)
    ) as pool:
        for stage in () if given.record else pieces:
            futures = [pool.submit(*piece) for piece in stage]
            for number, future in enumerate(as_completed(futures), 1):
                now = time.monotonic() - began
                print(f"{now:6.0f} s {number}/{len(futures)} {future.result()}", flush=True)
                if given.seconds and now > given.seconds:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    if given.smoke:
        return
    for suite, files in todo.items():
        rows = [flat(json.loads(file.read_text())) for file in files if file.exists()]
        rows += [
            {"source": True, **json.loads(file.read_text())}
            for file in sorted((work / suite / "sources").glob("*/source.json"))
        ]
        print(schema.record(f"weit-{suite}", rows, seeds=list(given.seeds), device=given.device,
                            load=load, folder=given.results).name)  # fmt: skip


if __name__ == "__main__":
    main()
