import pytest
from helpers.processes import TESTS, torchrun


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_same_bits_on_every_mesh(world):
    """FSDP2 (materialised, on meta, before and after), DDP and compiled, on gloo processes."""
    printed = torchrun(TESTS / "helpers" / "distributed_worker.py", processes=world)
    assert printed.count("is done") == world
