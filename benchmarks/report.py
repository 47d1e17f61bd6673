"""Fill the tables of docs/performance.md and docs/benchmarks.md from the committed result files.

    python benchmarks/report.py                   # or: make bench-report

It also draws docs/plots.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import schema
from trials import plots
from trials.photos import photos
from trials.real_tables import real_finetune, real_names, real_probe, real_text
from trials.speed import benchmarks, gpu
from trials.tables import (
    accuracies,
    best_rate,
    mean,
    origin,
    results,
    steps_saved,
    table,
    trials,
)

from weightinit import HyperNetwork, TemplateBundle, list_templates
from weightinit.demo import BATCH, RATES, draw
from weightinit.files.locate import names


def demo() -> str:
    """Accuracies of the demo."""
    result = results("demo")
    whole, *rows = result["rows"]
    steps = rows[0]["steps"][-1]
    header = ["target", "width x depth, heads"]
    for start in RATES:
        header += [f"{start}: at once", f"{steps} steps"]
    lines = [
        [row["name"], f"{row['embed_dim']} x {row['depth']}, {row['num_heads']}"]
        + [score for start in RATES for score in (row[start][0], row[start][-1])]
        + [row["without_data"]]
        for row in rows
    ]
    rates = ", ".join(f"{rate:g} ({start})" for start, rate in RATES.items())
    return (
        "Accuracy in percent on 359 held-out handwritten digits. The ancestor, 64 wide and 6\n"
        f"deep, has {whole['accuracy']}. Each target is trained for {steps} steps of {BATCH} "
        "images,\n"
        f"at a learning rate chosen on validation images: {rates}.\n"
        "Means; the trained columns vary by up to "
        f"{max(row['spread'] for row in rows)} points over the seeds.\n\n"
        f"{table([*header, 'inherited without images: at once'], lines)}\n\n{origin(result)}"
    )


def bundles() -> str:
    """What ships in the package, from each bundle's provenance."""
    header = ["bundle", "auxiliary model", "its accuracy, val / test", "ancestor's", "size"]
    rows = []
    for name in list_templates():
        bundle = TemplateBundle.from_pretrained(name)
        found = bundle.config.provenance
        auxiliary, ancestor = found["auxiliary"], found["ancestor"]
        kib = sum(tensor.nbytes for tensor in bundle.tensors.values()) / 1024
        rows.append(
            [
                f"`{name}`",
                _auxiliary(bundle),
                f"{next(iter(auxiliary['val'].values()))} / {auxiliary['test']}"
                + " (loss)" * (auxiliary.get("metric") == "loss"),
                _ancestor(ancestor or {}),
                f"{kib:.0f} KiB",
            ]
        )
    predicted = []
    for name in names("hypernetwork"):
        bundle = HyperNetwork.from_pretrained(name)
        found = bundle.config.provenance
        scores = ", ".join(f"{size}: {score}" for size, score in found["zero_shot"].items())
        kib = sum(tensor.nbytes for tensor in bundle.tensors.values()) / 1024
        steps = found["recipe"]["steps"]
        predicted.append([f"`{name}`", bundle.config.method, steps, scores, f"{kib:.0f} KiB"])
    columns = ["hypernetwork", "kind", "steps", "val of targets at once", "size"]
    hypernets = table(columns, predicted)
    return (
        f"Shipped in the package (accuracies in percent, recorded by the training):\n\n"
        f"{table(header, rows)}\n\n{hypernets}"
    )


def _ancestor(card: Mapping[str, Any]) -> str:
    """The scores of whose soft labels were learned, or whose features were."""
    if "features" in card:
        return f"features of `{card['features']}`"
    return f"{card['val']} / {card['test']}" if card else "none"


def _auxiliary(bundle: TemplateBundle) -> str:
    """What a bundle was trained as."""
    sizes, stages = bundle.config.sizes, bundle.config.traits.get("depths", [])
    if len(stages) > 1:
        widths = "-".join(str(sizes[f"d{stage}"]) for stage in range(len(stages)))
        text = f"ConvNeXt-V2, {'-'.join(map(str, stages))} blocks of {widths}"
    else:
        kind = "DiT, " * (bundle.config.traits.get("family") == "dit")
        text = f"{kind}{bundle.config.depth} blocks of {sizes['d']}, {sizes['h']} heads"
    return f"{text}, patch {sizes['p']}"


def _suite(name: str, column: Callable[[Mapping[str, Any]], str], **options: Any) -> str:
    rows, origins = trials(name)
    return accuracies(rows, column, **options) + f"\n\n{origins}"


def depth() -> str:
    """Table 1."""
    return _suite("depth", lambda row: f"{row['depth']} blocks")


def width() -> str:
    """Table 2."""
    return _suite("width", lambda row: f"width {row['width']}")


def deeper() -> str:
    """Table D.2."""
    return _suite("deeper", lambda row: f"{row['depth']} blocks")


def components() -> str:
    """Table 5: parts by starts, and the whole from Table 1."""
    rows, origins = trials("components")
    parts = []
    for row in [*_whole(), *rows]:
        part, _, start = row["method"].partition(", ")
        quick = " (quick ancestor)" * ("quick_ancestor" in row)
        parts.append({**row, "name": part, "start": (start or "interpolate") + quick})
    return accuracies(parts, lambda row: row["start"], costs=False) + f"\n\n{origins}"


def templates() -> str:
    """Table 6, and the whole from Table 1."""
    rows, origins = trials("templates")
    return accuracies([*_whole(), *rows], lambda row: "accuracy") + f"\n\n{origins}"


def _whole() -> list[Mapping[str, Any]]:
    """The rows of Table 1 that have every part of all the templates."""
    names = ("WAVE, interpolate", "WAVE, linear + fitted")
    return [r for r in trials("depth")[0] if r["method"] in names and r["depth"] == 6]


def fit() -> str:
    """How long scalers must be fitted."""
    return _suite("fit", lambda row: f"{row['fit_steps']} steps", costs=False)


def transfer() -> str:
    """Table 3, with the mean over the tasks."""
    rows, origins = trials("transfer")
    text = accuracies(rows, lambda row: row["data"], costs=False)
    names = list(dict.fromkeys(row["name"] for row in rows))
    means = {n: mean([r for r in rows if r["name"] == n], "trained") for n in names}
    lines = [[name, f"{value:.1f}"] for name, value in means.items()]
    balanced = {
        name: mean([r for r in rows if (r["name"], r["data"]) == (name, "clothing")], "balanced")
        for name in names
    }  # fmt: skip
    lines = [[*line, f"{balanced[line[0]]:.1f}"] for line in lines]
    means_table = table(["", "mean of the tasks", "clothing, balanced accuracy"], lines)
    return f"{text}\n\n{means_table}\n\n{origins}"


def curves() -> str:
    """What a start is worth in steps from scratch."""
    result = results("learngene-curves-micro")
    return steps_saved(result["rows"])[0] + f"\n\n{origin(result)}"


def inherited(suite: str) -> str:
    """One ancestor's weights in targets of other sizes; and what they are worth in steps."""
    result = results(f"learngene-{suite}-micro")
    rows = best_rate([row for row in result["rows"] if row["budget"] == 1])
    longer = [row for row in result["rows"] if row["budget"] > 1]
    first = [row for row in [*rows, *longer] if _size(row) == _size(rows[0])]
    text = accuracies(rows, lambda row: "{} x {}".format(*_size(row)), costs=False)
    groups = dict.fromkeys((row["name"], row["steps"]) for row in first)
    means = [
        {"name": name, "steps": steps, "trained": mean(
            [row for row in first if (row["name"], row["steps"]) == (name, steps)], "trained"
        )}
        for name, steps in groups
    ]  # fmt: skip
    saved = steps_saved(means)[0]
    size = "{} x {}".format(*_size(rows[0]))
    return f"{text}\n\nAt {size}. {saved}\n\n{origin(result)}"


def _size(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["width"], row["depth"]


def shrink() -> str:
    """Smaller targets."""
    return inherited("shrink")


def choices() -> str:
    """What the default shrinks by."""
    result = results("learngene-choices-micro")

    def column(row: Mapping[str, Any]) -> str:
        return "{} x {}, lr {lr:g}".format(*_size(row), lr=row["lr"])

    return f"{accuracies(result['rows'], column, costs=False)}\n\n{origin(result)}"


def grow() -> str:
    """Larger targets."""
    return inherited("grow")


def hypernets() -> str:
    """Targets that were never trained, by hypernetwork."""
    result = results("hypernets-sizes-micro")

    def column(row: Mapping[str, Any]) -> str:
        return "{} x {}{}".format(*_size(row), ", unseen" if row["held_out"] else "")

    text = accuracies(result["rows"], column, costs=False)
    close = table(
        ["", "cosine of qkv with the ancestor's", "numbers of its own", "seconds of its training"],
        [
            [row["name"], row["cosine"], row.get("parameters", 0), row.get("meta_seconds", 0)]
            for row in result["rows"]
            if "cosine" in row and row["seed"] == result["seeds"][0]
        ],
    )
    return f"{text}\n\n{close}\n\n{origin(result)}"


def tasks() -> str:
    """One hypernetwork of many tasks beside one for each."""
    result = results("hypernets-tasks-micro")
    rows = sorted(result["rows"], key=lambda row: row["name"] == "timm default")

    def column(row: Mapping[str, Any]) -> str:
        return row["task"] + ", unseen" * row["unseen"]

    steps = {row["name"]: row["meta_steps"] for row in rows if "meta_steps" in row}
    told = "; ".join(f"{name}: {number} steps" for name, number in steps.items())
    return f"{accuracies(rows, column, costs=False)}\n\n{told}.\n\n{origin(result)}"


def texts() -> str:
    """GPT-2s that were never trained, and after a short training."""
    result = results("hypernets-texts-micro")
    rows = sorted(result["rows"], key=lambda row: row["name"] != "transformers default")

    def column(row: Mapping[str, Any]) -> str:
        return "{}, {} x {}{}".format(row["text"], *_size(row), ", unseen" * row["unseen"])

    columns = list(dict.fromkeys(map(column, rows)))
    cells = {
        (row["name"], column(row)): f"{row['trained']:.2f} ({row['at_once']:.2f})" for row in rows
    }
    names = dict.fromkeys(row["name"] for row in rows)
    lines = [[name, *(cells.get((name, c), "") for c in columns)] for name in names]
    return f"{table(['', *columns], lines)}\n\n{origin(result)}"


def weit_vit() -> str:
    """WeiT and its baselines on CIFAR-10."""
    more = "Other template sets, and `sandwich` at equal cost, on a processor; one seed:"
    return "\n\n".join([_weit("vit", "accuracy", 1), more, _weit("vit", "accuracy", 1, "cpu")])


def weit_convnext() -> str:
    """WeiT and its baselines on CIFAR-10, of convolutional networks."""
    return _weit("convnext", "accuracy", 1, "cpu")


def weit_control() -> str:
    """WeiT and its baselines in balancing bodies of several links."""
    result = results("weit-control", "cuda")
    rows = [row for row in result["rows"] if not row["long"]]
    names, sizes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("name", "target"))
    links = ("1", "2", "3")

    def success(name: str, size: str, when: str) -> str:
        own = [row for row in rows if (row["name"], row["target"]) == (name, size)]
        scores = [f"{mean(own, f'{when}_success_{n}'):.0f}" for n in links] if own else []
        return " / ".join(scores)

    lines = [
        [f"{name}, {words}", *(success(name, size, when) for size in sizes)]
        for name in names
        for when, words in (("at_once", "at once"), ("trained", "after 400 steps"))
    ]
    balanced = f"Bodies balanced, in percent:\n\n{table(['', *sizes], lines)}"
    more = "More starts, on a processor; the error, one seed:"
    errors = [_weit("control", "error", 4, device) for device in ("cuda", "cpu")]
    return "\n\n".join([errors[0], balanced, more, errors[1]])


def weit_dit() -> str:
    """WeiT and its baselines in diffusion."""
    tables = [
        _weit("dit", metric, digits, "cpu").split("\n\n")[0]
        for metric, digits in (("loss", 4), ("frechet", 1), ("agreement", 1))
    ]
    words = ("Loss:", "Frechet distance:", "Agreement, in percent:")
    parts = [f"{word}\n\n{one}" for word, one in zip(words, tables, strict=True)]
    return "\n\n".join([*parts, origin(results("weit-dit"))])


def _weit(suite: str, metric: str, digits: int, device: str = "cuda") -> str:
    result = results(f"weit-{suite}", device)
    rows = [
        row
        for row in result["rows"]
        if not (row.get("source") or row.get("long") or "refused" in row)
    ]
    sizes = list(dict.fromkeys(row["target"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        line = [name]
        for size in sizes:
            own = [row for row in rows if (row["name"], row["target"]) == (name, size)]
            after = [row[f"trained_{metric}"] for row in own]
            if not own:
                line.append("")
                continue
            once = mean(own, f"at_once_{metric}")
            half = (max(after) - min(after)) / 2
            varied = f" ± {half:.{digits}f}" if len(own) > 1 else ""
            line.append(f"{sum(after) / len(after):.{digits}f}{varied} ({once:.{digits}f})")
        lines.append(line)
    return f"{table(['', *sizes], lines)}\n\n{origin(result)}"


def tune() -> str:
    """The learning rates that were tried."""
    return _suite("tune", lambda row: f"lr {row['lr']:g}", costs=False)


def picture(file: Path) -> None:
    """Draw the README's picture."""
    whole, *rows = results("demo")["rows"]
    draw([{**row, "target": row["name"]} for row in rows], whole["accuracy"], file)


PARTS: Mapping[Path, Sequence[Callable[[], str]]] = {
    schema.ROOT / "docs" / "performance.md": (bundles, demo, benchmarks),
    schema.ROOT / "docs" / "benchmarks.md": (
        depth, width, deeper, components, templates, fit, transfer, curves, tune, shrink, choices,
        grow,
        photos, real_probe, real_finetune, real_text, real_names,
        hypernets, tasks, texts, weit_vit, weit_convnext, weit_dit, weit_control, gpu,
    ),
}  # fmt: skip


def filled(text: str, parts: Sequence[Callable[[], str]]) -> str:
    """A document with every generated part made anew."""
    for make in parts:
        name = make.__name__
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        found = re.search(pattern, text, re.DOTALL)
        assert found, f"there is no <!-- {name} --> part"
        text = text[: found.end(1)] + make() + "\n" + text[found.start(2) :]
    return text


if __name__ == "__main__":
    for path, parts in PARTS.items():
        path.write_text(filled(path.read_text(), parts))
    plots.draw(
        {suite: trials(suite)[0] for suite in plots.SUITES},
        schema.ROOT / "docs" / "plots",
    )
    picture(schema.ROOT / "docs" / "plots" / "demo.svg")
