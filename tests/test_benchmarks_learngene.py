"""The benchmark of starts, at a size that takes seconds, on scikit-learn's digits."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weightinit.training.config import TrainingConfig
from weightinit.training.presets import Preset
from weightinit.training.teacher import Network

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
TINY = Preset(
    name="tiny",
    data="digits",
    auxiliary=Network("vit_tiny_patch16_224", {**SIZE, "depth": 6}),
    ancestor=Network(
        "resnet10t",
        {"channels": (8, 8, 8, 8), "stem_width": 8},
        image_size=16,
        training=TrainingConfig(steps=4, batch_size=32),
    ),
    training=TrainingConfig(steps=6, batch_size=32, lr=1e-2, warmup_steps=2, loss="soft+ce"),
)


@pytest.fixture(scope="module")
def trials():
    """The benchmark's modules, importable as its command imports them."""
    sys.path.insert(0, str(BENCHMARKS))
    import learngene
    from trials import methods, remember, run, scales, sources, suites, tables

    yield {m.__name__.rpartition(".")[2]: m for m in
           (methods, remember, run, scales, sources, suites, tables, learngene)}  # fmt: skip
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny(trials):
    return trials["scales"].Scale(
        name="tiny",
        presets=(TINY,),
        short=TrainingConfig(2, batch_size=32, lr=1e-3, warmup_steps=1),
        lr=1e-3,
        fit_steps=2,
        fit_lr=1e-2,
        seeds=(1, 2),
        widths={16: (32, 24)},
        packs=("digits",),
        depths=(4, 6),
        deeper=(7,),
    )


@pytest.fixture(scope="module")
def lab(trials, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    return trials["sources"].Lab(tiny, folder, folder)


def options(lab):
    return {"scale": lab.scale, "folder": lab.folder, "cache_dir": lab.cache_dir}


@pytest.mark.slow
def test_every_method_makes_a_row_that_the_schema_takes(trials, tiny, lab, tmp_path):
    cases = [
        trials["suites"].Case(
            "depth", name, 16, 16, 6, 1, ancestor=(16, 6) if method.inherits else (0, 0)
        )
        for name, method in trials["methods"].METHODS.items()
        if name != "Torch-Pruning"  # a peer's, which the tests do not install
    ]
    rows = trials["run"].run(cases, options(lab))
    assert len(rows) == len(trials["methods"].METHODS) - 1
    by_name = {row["name"]: row for row in rows}
    assert by_name["timm default"]["transferred"] == by_name["He"]["scalers"] == 0
    assert by_name["WAVE, interpolate + fitted"]["scalers"] > 0
    assert by_name["outright"]["transferred"] == by_name["outright"]["parameters"]
    assert by_name["outright"]["steps"] == 6 and by_name["TLEG"]["steps"] == 2
    import schema

    schema.load(schema.record("learngene-depth-tiny", rows, seeds=[1], folder=tmp_path))


def test_all_suites_name_known_methods_and_no_case_twice(trials, tiny):
    for scale in trials["scales"].SCALES.values():
        for name, suite in trials["suites"].SUITES.items():
            cases = list(suite(scale))
            assert all(case.suite == name for case in cases)
            assert len({case.name for case in cases}) == len(cases)
            assert all(case.sources(scale) is not None for case in cases)
            heads = {preset.width: preset.auxiliary.kwargs["num_heads"] for preset in scale.presets}
            for case in cases:
                assert not case.width * heads[case.templates] % case.templates


def test_a_run_that_is_there_is_not_run_again(trials, tiny, lab, monkeypatch):
    cases = [
        trials["suites"].Case("width", "WAVE, interpolate", 16, 24, 6, seed) for seed in (1, 2)
    ]
    first = trials["run"].run(cases[:1], options(lab))
    monkeypatch.setattr(trials["run"], "run_case", lambda case, *a, **k: {
        "suite": "width", "width": 0, "depth": 0, "name": "new", "at_once": 0, "trained": 0,
    })  # fmt: skip
    rows = trials["run"].run(cases, options(lab))
    assert rows[0] == first[0] and rows[1]["name"] == "new"
    files = list((lab.folder / "runs" / "width").iterdir())
    files_left = [file for file in files if json.loads(file.read_text())["name"] == "new"]
    for file in files_left:
        file.unlink()


def test_the_same_case_gives_the_same_row(trials, tiny, lab):
    case = trials["suites"].Case("x", "WAVE, linear + fitted", 16, 16, 4, 1)
    lab.train(trials["sources"].Source("wave-published", 16))
    first, second = (trials["run"].run_case(case, lab) for _ in range(2))
    for row in (first, second):
        for key in ("seconds", "fit_seconds", "start_seconds"):
            del row[key]
    assert first == second


@pytest.mark.slow
def test_two_jobs_do_what_one_does(trials, tiny, lab, tmp_path):
    cases = [trials["suites"].Case("x", "He", 16, 16, 4, seed) for seed in (1, 2)]
    one = trials["run"].run(cases, options(lab))
    two = trials["run"].run(cases, {**options(lab), "folder": tmp_path}, jobs=2)
    assert [row["trained"] for row in one] == [row["trained"] for row in two]


def test_tuning_reads_no_test_images(trials, tiny, lab, monkeypatch):
    data = lab.data()
    broken = replace(data, test=replace(data.test, labels=torch.full_like(data.test.labels, -1)))
    monkeypatch.setitem(lab._data, "digits", broken)
    case = trials["suites"].Case("tune", "He", 16, 16, 4, 1, test=False)
    row = trials["run"].run_case(case, lab)
    assert row["trained"] == row["val"][-1]


def test_the_recorded_ancestor_says_what_the_ancestor_says(trials, tiny, lab, tmp_path):
    ancestor, data = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), lab.data()
    file = tmp_path / "said.safetensors"
    recalled = trials["remember"].remember(ancestor, data, TINY.training, file)
    stream = data.batches(range(3), batch_size=32, augment="light", seed=0)
    for images, _ in stream:
        assert torch.allclose(recalled(images), ancestor(images), atol=1e-2)
    with pytest.raises(KeyError):
        recalled(images + 1)


def test_wave_as_published_starts_at_eq_b1_and_moves_slowly(trials, lab):
    source = trials["sources"].Source
    published, ours = (lab.build(source(kind, 16)) for kind in ("wave-published", "wave"))
    steps = published.scaler_values()["attn.proj.weight"].diff(dim=0)
    assert torch.allclose(steps[0], steps[1], atol=1e-5)
    assert not torch.allclose(*ours.scaler_values()["attn.proj.weight"].diff(dim=0)[:2], atol=1e-1)
    assert lab.config(source("wave-published", 16)).scaler_lr == 0.5
    assert lab.config(source("wave", 16)).scaler_lr == 1
    for kind, number in (("wave-fewer-published", 1), ("wave-smaller-published", 8)):
        first = lab.build(source(kind, 16)).scaler_values()["attn.proj.weight"][0]
        # the later half of them in proportion to the block's number, of 6
        assert len(first) == number and first[-1].max().item() == pytest.approx(1 / 6, abs=1e-5)
        assert lab.config(source(kind, 16)).scaler_lr == 0.5


def test_a_quicker_ancestor_is_used_and_said(trials, tiny, tmp_path):
    lab = trials["sources"].Lab(tiny, tmp_path, tmp_path, quick=(8, 2))
    row = trials["run"].run_case(trials["suites"].Case("depth", "He", 16, 16, 4, 1), lab)
    assert "quick_ancestor" not in row
    lab.ancestor(16)
    described = json.loads((tmp_path / "sources" / "ancestor.json").read_text())["network"]
    assert described["image_size"] == 8 and described["training"]["steps"] == 2


def rows_of(**accuracies):
    return [
        {
            "name": name, "trained": score, "at_once": 10.0, "steps": steps, "seed": seed,
            "transferred": 1000, "scalers": 0, "fit_seconds": 0.0, "seconds": 2.0, "depth": 6,
        }
        for name, points in accuracies.items()
        for seed, (steps, score) in enumerate(points)
    ]  # fmt: skip


def test_tables_give_means_and_half_the_range(trials):
    rows = rows_of(one=[(2, 50.0), (2, 52.0)], two=[(2, 40.0)])
    text = trials["tables"].accuracies(rows, lambda row: row["depth"])
    assert "| one | 51.0 ± 1.0 (10) | 1 k | 0 | 2 |" in text
    assert "| two | 40.0 (10) |" in text


def test_steps_saved_lie_between_the_budgets_of_scratch(trials):
    rows = rows_of(**{
        "timm default": [(100, 30.0), (400, 40.0)],
        "new": [(50, 35.0), (100, 45.0), (10, 20.0)],
    })  # fmt: skip
    _, found = trials["tables"].steps_saved(rows)
    assert [(row["steps"], row["worth"]) for row in found] == [
        (10, "under 100"), (50, "200"), (100, "over 400"),
    ]  # fmt: skip
