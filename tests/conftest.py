import os
import signal
import types
from pathlib import Path

import pytest
import timm
import torch
from helpers import bundles, hub_server
from helpers.ancestors import ARCHITECTURE, CONFIG, NAME
from helpers.models import make_bundle
from huggingface_hub import constants, file_download
from huggingface_hub.utils import disable_progress_bars
from torch import nn

from weightinit.ancestor.models import Library


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell starts what runs in its background with Ctrl-C ignored, and children inherit it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def bundle():
    return make_bundle()


@pytest.fixture(scope="session")
def golden():
    """Folder of the published code's outputs; tests that need them skip where it is absent."""
    folder = Path(os.environ.get("WEIGHTINIT_GOLDEN", "../shared/golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden files in {folder}: set WEIGHTINIT_GOLDEN")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the client takes for its own, with a home and a cache of this test alone."""
    reason = "huggingface_hub 1.0 or newer: what is turned off here is not in older clients"
    _http = pytest.importorskip("huggingface_hub.utils._http", reason=reason)
    _detect_agent = pytest.importorskip("huggingface_hub.utils._detect_agent", reason=reason)
    with hub_server.serve() as server:
        moves = {constants.HF_HOME: str(tmp_path / "home"), constants.ENDPOINT: server.endpoint}
        for name, value in vars(constants).copy().items():
            if isinstance(value, str) and not name.startswith("__"):
                for old, new in moves.items():
                    value = value.replace(old, new)
                monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # The chunk store behind xet is a service of its own; without it the client speaks LFS.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(_detect_agent, "_registry", {})
        impatient = types.SimpleNamespace(sleep=lambda seconds: None)
        for module in (file_download, _http):
            monkeypatch.setattr(module, "time", impatient)
        disable_progress_bars()
        _http.close_session()
        yield server
        _http.close_session()


@pytest.fixture
def saved(tmp_path):
    """A folder that holds the bundle of ``helpers.bundles``, with fitted scalers."""
    folder = tmp_path / "saved"
    bundles.make_bundle(fitted=(2,)).save_pretrained(folder)
    return folder


@pytest.fixture
def model():
    """The model that CONFIG describes, with random weights that no other model has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(ARCHITECTURE, num_classes=5, **CONFIG["model_args"])
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    return model.eval()


@pytest.fixture
def global_generator():
    """No door touches the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def streamed(monkeypatch):
    """Fail where a library loads the weights instead."""

    def loaded(self):
        raise AssertionError("not streamed")

    monkeypatch.setattr(Library, "loaded", loaded)


@pytest.fixture
def vit_tensors():
    """Tensors for timm's own model of NAME: random, and none of them as timm draws it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = timm.create_model(NAME)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


@pytest.fixture
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()
