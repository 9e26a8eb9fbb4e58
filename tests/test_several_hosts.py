"""Two processes that share runs and batches, as several hosts would, give the numbers of one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

SCRIPT = """
import json, sys
import jax
count, index, port = map(int, sys.argv[1:])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, index)
import jax.numpy as jnp, numpy as np, optax
from jax.experimental import multihost_utils
from runs import small_task
from test_training import DATA, descend, loss, sample, zeros
from gfm_jax.runs import record, save_steps

assert jax.process_count() == count and jax.device_count() == count
mesh = jax.make_mesh((count,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
keys, rates = jax.random.split(jax.random.key(0), 4), np.full((4, 12), 0.01)
runs = record(keys, small_task(), optax.adam, rates, save_steps(12, 4), mesh=mesh)
every = multihost_utils.process_allgather(runs.weights, tiled=True)
_, info = descend(loss, zeros(), jnp.asarray(DATA), sample, optax.sgd(0.1), 20, mesh=mesh)
print(json.dumps([np.asarray(every).tolist(), np.asarray(info.last["w"]).tolist()]))
"""


def results(count):
    here = pathlib.Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here), "JAX_PLATFORMS": "cpu"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, "-c", SCRIPT, str(count), str(i), str(port)] for i in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    found = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), found[0][1][-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


def test_two_processes_give_the_numbers_of_one():
    (alone,) = results(1)
    for together in results(2):
        np.testing.assert_allclose(together[0], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(together[1], alone[1], rtol=1e-5, atol=1e-6)
