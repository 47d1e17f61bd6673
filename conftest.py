"""Seeds every test and doctest from one place, `--seed`, whatever ran before it."""

import random
from zlib import crc32

import hypothesis
import numpy as np
import pytest
import torch

# Several pytest workers on two cores: more threads each only slow them down.
torch.set_num_threads(1)


class TorchRandom:
    """The global generator of torch, which hypothesis seeds for each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH = TorchRandom()
hypothesis.register_random(TORCH)
hypothesis.settings.register_profile(
    "weightinit",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("weightinit")


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=0, help="seed of all that the tests draw")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.getoption("--seed"))
    # pytest-randomly draws the order; what a test draws must not change with it.
    config.option.randomly_reset_seed = False


def pytest_report_header(config):
    return f"drawing from --seed={config.getoption('--seed')}"


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed what tests share: it is drawn alike whichever of them asks for it first."""
    if fixturedef.scope != "function":
        seed(request.config, fixturedef.argname)


@pytest.fixture(autouse=True)
def seeded(pytestconfig):
    """Seed what a test draws, and the fixtures that are made for it alone."""
    seed(pytestconfig, "test")


def seed(config, name):
    """Seed all global generators by a name and `--seed`."""
    value = (config.getoption("--seed") + crc32(name.encode())) % 2**32
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
