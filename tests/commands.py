"""Experiments, run as a user runs them."""

import os
import subprocess
import sys
import tempfile

__all__ = ["run_experiment"]


def run_experiment(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m experiments.NAME ...`, with a cache of its own: the presets' programs are not those of the other tests."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.path.join(tempfile.gettempdir(), "gfm_jax_smoke"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)
