import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("world", [1, 2])
def test_same_bits_on_every_mesh(world):
    """FSDP2 (materialised, on meta, before and after), DDP and compiled, on gloo processes."""
    folder = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={world}",
            folder / "helpers" / "distributed_worker.py",
        ],
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("is done") == world
