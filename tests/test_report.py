import json

import pytest
import torch
from helpers.models import make_bundle, vit

import weightinit as wi


@pytest.fixture
def plan():
    return wi.plan_templates(vit(depth=4, num_classes=3), make_bundle())


def test_text_has_one_line_for_like_rows(plan):
    text = str(plan.report())
    lines = [line for line in text.splitlines() if line.startswith("attn.qkv.weight")]
    assert len(lines) == 1 and "0-3" in lines[0] and "48x16" in lines[0]
    assert "fresh" in text and "6 templates of attn.qkv.weight" in text


def test_dict_is_plain_json(plan):
    values = json.loads(json.dumps(plan.report().to_dict()))
    assert values["counts"]["fresh"] == 2
    assert {row["action"] for row in values["rows"]} == {"written", "fresh"}


def test_rich_table(plan):
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=200).print(plan.report())
    assert "attn.qkv.weight" in out.getvalue()


def test_plot_has_a_curve_for_each_matrix_role(plan):
    plan.commit()
    axes = plan.report().plot().axes[0]
    assert len(axes.lines) == 4
    assert all(torch.isfinite(torch.tensor(line.get_ydata())).all() for line in axes.lines)
