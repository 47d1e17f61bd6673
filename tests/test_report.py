import json
import math

import pytest
import timm
import torch
from helpers.models import make_bundle, vit

import weightinit as wi
from weightinit.report import Report, Row


@pytest.fixture
def plan():
    return wi.plan_templates(vit(depth=4, num_classes=3), make_bundle())


def row(name="w", role="attn.proj.weight", block=0, shape=(2, 3), action="written", **options):
    options = {"source": f"{role} of block {block} (rule)", "how": "rule", **options}
    return Row(name, role, block, shape, action, **options)


def report(*rows):
    return Report(rows, "ancestor x")


def table(report, **options):
    return {line[0]: line for line in report.lines(**options)}


def test_text_has_one_line_for_like_rows(plan):
    text = str(plan.report())
    lines = [line for line in text.splitlines() if line.startswith("attn.qkv.weight")]
    assert len(lines) == 1 and "0-3" in lines[0] and "48x16" in lines[0]
    assert "fresh" in text and "6 templates of attn.qkv.weight" in text


def test_a_role_is_one_line_its_commonest_source_first_and_full_ones_on_demand():
    rows = [row(block=i) for i in range(3)]
    rows.append(row(block=3, source="new block (rule)", how="new block (rule)"))
    short, full = report(*rows).lines(), report(*rows).lines(full=True)
    assert short == [
        ("attn.proj.weight", "0-3", "2x3", "24", "written", "rule; 3: new block (rule)")
    ]
    assert [line[-1] for line in full] == [r.source for r in rows]


def test_fresh_rows_are_last_and_kept_ones_before_them():
    rows = [row(role="pos", block=None, action="fresh"), row(role="token", action="kept"), row()]
    assert [line[4] for line in report(*rows).lines()] == ["written", "kept", "fresh"]
    assert [line[0] for line in report(*rows).lines(full=True)] == [
        "attn.proj.weight", "token", "pos",
    ]  # fmt: skip


def test_stages_of_several_sizes_are_lines_of_their_own():
    rows = [row(block=0), row(block=1, shape=(4, 6))]
    assert [line[1:3] for line in report(*rows).lines()] == [("0", "2x3"), ("1", "4x6")]


def test_numbers_are_counted_by_what_happens_to_them():
    found = report(row(shape=(99, 10)), row(shape=(10,), action="fresh"), row(shape=()))
    assert found.numbers == {"written": 991, "fresh": 10, "kept": 0}
    assert found.heading()[1] == "1,001 numbers: 99.0% written, 1.0% fresh"
    tiny = report(row(shape=(10**6,)), row(shape=(1,), action="fresh"))
    assert tiny.heading()[1].endswith(">99.9% written, <0.1% fresh")


def blocks(*mixes):
    return [row(block=i, blocks=mix) for i, mix in enumerate(mixes) if mix is not None]


@pytest.mark.parametrize(
    ("olds", "expected"),
    [
        ([0, 1, 2, 3], "0-3 <- 0-3"),
        ([0, 1, 5], "0-1 <- 0-1, 2 <- 5"),
        ([0, 1, 2, 2, 3, 3], "0-1 <- 0-1, 2-3 <- 2, 4-5 <- 3"),
        ([0, 0, 0], "0-2 <- 0"),
        ([2, 1, 0], "0 <- 2, 1 <- 1, 2 <- 0"),
        ([0, None, 2], "0 <- 0, 2 <- 2"),
        ([], ""),
    ],
)
def test_the_map_of_blocks(olds, expected):
    found = report(*blocks(*(None if old is None else ((old, 1.0),) for old in olds)))
    assert found.block_map == expected
    assert (f"\nblocks {expected}" in str(found)) is bool(expected)


def test_the_map_of_blocks_that_are_mixed_and_follows_the_most_parameters():
    found = report(*blocks(((0, 0.5), (1, 0.25)), ((1, 1.0),)))
    assert found.block_map == "0 <- 0.5 x 0 + 0.25 x 1, 1 <- 1"
    rows = [row(blocks=((0, 1.0),)), row(blocks=((0, 1.0),)), row(blocks=((1, 1.0),))]
    assert report(*rows).block_map == "0 <- 0"


def test_an_inheritance_is_read_in_a_screen():
    size = {"img_size": 32, "patch_size": 8, "num_classes": 5}
    old = timm.create_model("vit_tiny_patch16_224", depth=6, embed_dim=48, num_heads=3, **size)
    for depth, width, heads in ((9, 96, 6), (4, 32, 2), (9, 32, 2)):
        model = timm.create_model(
            "vit_tiny_patch16_224", depth=depth, embed_dim=width, num_heads=heads, **size
        )
        text = str(wi.plan_projection(old, model, calibration="none").report())
        assert len(text.splitlines()) < 30 and "\nblocks 0" in text
        assert max(len(line) for line in text.splitlines() if not line.startswith("note")) < 170


def test_dict_is_plain_json_and_can_be_saved(plan, tmp_path):
    values = json.loads(json.dumps(plan.report().to_dict()))
    assert values["counts"]["fresh"] == 2 and values["numbers"]["fresh"] == 16 * 3 + 3
    assert values["weightinit"] == wi.__version__ and values["seed"] is None
    assert {row["action"] for row in values["rows"]} == {"written", "fresh"}
    plan.report().save(tmp_path / "init.json")
    assert json.loads((tmp_path / "init.json").read_text()) == values
    with pytest.raises(wi.WeightInitError, match="cannot write"):
        plan.report().save(tmp_path / "nowhere" / "init.json")


def test_the_seed_is_told():
    plan = wi.plan_mimetic(vit(), generator=torch.Generator().manual_seed(7))
    assert plan.report().to_dict()["seed"] == 7


def test_short_forms_of_plans_and_reports(plan):
    short = "templates memory: 53 written, 2 fresh, 0 kept"
    assert repr(plan.report()) == f"Report({short})"
    assert short in repr(plan) and len(repr(plan)) < 150


def test_a_notebook_gets_a_table_in_which_names_cannot_be_markup(plan):
    page = plan._repr_html_()
    assert page.count("<tr>") == len(plan.report().lines()) + 1
    evil = Report([row(role="<script>")], "<b>", notes=["<i>"])._repr_html_()
    assert "<script>" not in evil and "<b>" not in evil and "<i>" not in evil


def test_rich_table(plan):
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=200).print(plan.report())
    assert "attn.qkv.weight" in out.getvalue()


def curves(figure):
    """By panel and label the heights of its points."""
    return {
        (axes.get_title(), line.get_label()): list(line.get_ydata())
        for axes in figure.axes
        for line in axes.lines
    }


def deviation(value):
    return float(value.detach().std(correction=0))


def test_the_plot_before_a_commit_shows_what_is_and_what_is_planned(plan):
    model = plan.model
    before = [deviation(block.mlp.fc1.weight) for block in model.blocks]
    found = curves(plan.report().plot())
    assert len(found) == 2 * 5  # four roles of matrices, and what is outside
    assert found["mlp.fc1.weight", "before"] == pytest.approx(before)
    plan.commit()
    after = [deviation(block.mlp.fc1.weight) for block in model.blocks]
    assert found["mlp.fc1.weight", "after"] == pytest.approx(after)
    assert before != pytest.approx(after)
    later = curves(plan.report().plot())
    assert later == {key: pytest.approx(v) for key, v in found.items() if key[1] == "after"}


def test_the_plot_marks_what_is_fresh_and_takes_a_meta_model():
    with torch.device("meta"):
        model = vit(depth=4, num_classes=3)
    figure = wi.plan_templates(model, make_bundle()).report().plot()
    marked = {
        axes.get_title(): len(c.get_offsets()) for axes in figure.axes for c in axes.collections
    }
    assert marked == {"outside the blocks": 1}
    found = curves(figure)
    assert all(map(math.isnan, found["mlp.fc1.weight", "before"]))
    assert all(map(math.isfinite, found["mlp.fc1.weight", "after"]))
