import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "schema.py"
spec = importlib.util.spec_from_file_location("benchmarks_schema", SOURCE)
schema = importlib.util.module_from_spec(spec)
spec.loader.exec_module(schema)

ROWS = [{"name": "one", "ratio": 1.5, "shape": [3, 4], "note": None}]


@pytest.fixture
def result(tmp_path):
    return json.loads(schema.record("suite", ROWS, seeds=[0, 1], folder=tmp_path).read_text())


@pytest.mark.parametrize("path", sorted(schema.RESULTS.glob("*")), ids=lambda path: path.name)
def test_every_result_file_is_valid(path):
    schema.load(path)


def test_what_is_recorded_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/a/b/run.py", "--data=/home/me/images", "--only", "two words"]
    )
    path = schema.record("suite", ROWS, seeds=[0, 1, 2], folder=tmp_path / "new")
    result = schema.load(path)
    assert result["rows"] == ROWS
    assert result["command"] == "python benchmarks/run.py --data=images --only 'two words'"
    assert path.name.startswith("suite--")
    assert path.name.endswith("--cpu.json")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_result_under_another_name_is_refused(tmp_path):
    path = schema.record("suite", ROWS, seeds=[0], folder=tmp_path)
    other = path.rename(tmp_path / "other.json")
    with pytest.raises(ValueError, match="should be named suite--"):
        schema.load(other)


@pytest.mark.parametrize("field", schema.FIELDS)
def test_no_field_may_be_missing(result, field):
    del result[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        schema.validate(result)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("schema",), 2, "schema is 2"),
        (("extra",), 1, "extra is unknown"),
        (("suite",), 3, "suite is 3"),
        (("seeds",), [], "seeds"),
        (("seeds",), [0.5], "seeds"),
        (("rows",), [], "rows"),
        (("rows", 0, "name"), None, "row 0.*name"),
        (("rows", 0, "ratio"), float("nan"), "row 0: ratio"),
        (("rows", 0, "shape"), [[3]], "row 0: shape"),
        (("rows", 0, "note"), "see /home/me/log.txt", "a path"),
        (("command",), "python run.py --out ~/results", "a path"),
        (("timestamp",), "yesterday", "timestamp"),
        (("commit",), "main", "commit"),
        (("versions", "numpy"), "2.0", "versions"),
        (("machine", "cores"), "two", "machine.cores"),
        (("machine", "host"), "tower", "machine.host is unknown"),
        (("device",), "cuda", "gpu"),
        (("device",), "tpu", "device"),
    ],
)
def test_each_mistake_is_named(result, place, value, message):
    broken = copy.deepcopy(result)
    at = broken
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        schema.validate(broken)


def test_a_run_that_cannot_be_recorded_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="seeds"):
        schema.record("suite", ROWS, seeds=[], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
