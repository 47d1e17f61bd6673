"""Whatever stands in a config.json: a bundle as it says, or a BundleError."""

import json

import pytest
from hostile.base import write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from weightinit.errors import BundleError
from weightinit.templates.bundle import TemplateBundle

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_sound(folder)
    return folder, (folder / "config.json").read_text()


@settings(max_examples=100, deadline=None)
@given(value=json_values)
def test_any_json_as_config_is_refused(sound, value):
    folder, _ = sound
    (folder / "config.json").write_text(json.dumps(value))
    with pytest.raises(BundleError):
        TemplateBundle.from_pretrained(folder)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_config_are_refused(sound, data):
    folder, _ = sound
    (folder / "config.json").write_bytes(data)
    with pytest.raises(BundleError):
        TemplateBundle.from_pretrained(folder)


def paths(value, at=()):
    """Return the way to every value inside a JSON value."""
    found = [at]
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += paths(inner, (*at, key))
    return found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_sound_config_with_any_one_value_changed(sound, data):
    """Whatever stands in one place of a config: a bundle as configured, or a BundleError."""
    folder, text = sound
    config = json.loads(text)
    way = data.draw(st.sampled_from([way for way in paths(config) if way]))
    value = data.draw(json_values)
    at = config
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    try:
        bundle = TemplateBundle.from_pretrained(folder)
    except BundleError:
        return
    assert json.loads(bundle.config.to_json()) == config
