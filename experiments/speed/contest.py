"""How a contestant is timed: in a process of its own, on one core."""

import json
import os
import subprocess
import sys

from experiments.speed.contestants import CONTESTANTS

__all__ = ["time_contestant"]


def time_contestant(config, contestant: str, size: dict) -> dict:
    """What a contestant reports of itself; where `config.apart` is false, here, which tells only that it runs."""
    if not config.apart:
        return CONTESTANTS[contestant](**size)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    command = [sys.executable, "-m", "experiments.speed.contestants", contestant, json.dumps(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{contestant}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
