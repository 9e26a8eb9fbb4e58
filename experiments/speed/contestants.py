"""Who is timed: each contestant runs in a process of its own, on one core, and prints one line of JSON.

python -m experiments.speed.contestants NAME '{"num_runs": 256, ...}'
"""

import functools
import json
import os
import resource
import sys
import tempfile
import time

from experiments.speed.convolutions import CONVOLUTIONS
from experiments.speed.flows import FLOWS
from experiments.speed.watching import WATCHING

__all__ = ["CONTESTANTS"]

SIZES, BATCH, NUM_IMAGES = (64, 32, 10), 64, 1152


def _fastest(run, repeats=5) -> float:
    """Seconds of the fastest of several calls, after one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache  # so that what one table compiles serves the next, where they share a process
def _problem(num_hidden=SIZES[1:], num_inputs=SIZES[0]):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gfm_jax.base import Network
    from gfm_jax.networks import MLP
    from gfm_jax.runs import classification

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(NUM_IMAGES, num_inputs)).astype(np.float32)
    labels = rng.integers(0, 10, NUM_IMAGES)
    module = MLP(num_hidden)
    network = Network(lambda key: module.init(key, jnp.zeros((1, num_inputs))), module.apply)
    return classification(network, {"train": (inputs, labels)}, BATCH), jax.random.key(0)


def gfm_jax(num_runs: int, num_steps: int, save_every: int, chunk: int) -> dict:
    """`record`, with what it draws at random worked out beforehand and inside, as a user has it."""
    import jax
    import jax.numpy as jnp
    import optax

    from gfm_jax.runs import record, save_steps

    task, key = _problem()
    keys, rates = jax.random.split(key, num_runs), jnp.full(num_steps, 1e-3)
    saves = save_steps(num_steps, num_steps // save_every)
    recorded = lambda: jax.block_until_ready(
        record(keys, task, optax.adam, rates, saves, keep=("weights",), chunk=chunk)
    )
    return {"seconds": _fastest(recorded), "net_steps": num_runs * num_steps}


def matrix_products(num_runs: int, num_steps: int, save_every: int, chunk: int) -> dict:
    """The five matrix products of one step of such a network, and nothing else: what XLA could reach at best."""
    import jax
    import numpy as np

    a, b, c = SIZES
    shapes = {"x": (BATCH, a), "w_1": (a, b), "h": (BATCH, b), "w_2": (b, c), "g": (BATCH, c)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(num_runs, *shape)).astype(np.float32) for name, shape in shapes.items()}

    def step(carry, _):
        x, w_1, h, w_2, g = (carry[name] for name in shapes)
        # Every product is kept alive by the next step's operand of its shape.
        hidden, logits, d_w_2, d_h = x @ w_1, h @ w_2, h.T @ g, g @ w_2.T
        d_w_1 = x.T @ h
        return {"x": x, "w_1": d_w_1, "h": hidden + d_h, "w_2": d_w_2, "g": logits}, None

    one = lambda run: jax.lax.scan(step, run, length=num_steps)[0]
    products = jax.jit(lambda runs: jax.lax.map(one, runs, batch_size=chunk))
    return {
        "seconds": _fastest(lambda: jax.block_until_ready(products(arrays))),
        "net_steps": num_runs * num_steps,
    }


def _torch_data():
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_IMAGES, SIZES[0], generator=generator)
    return torch, inputs, torch.randint(0, 10, (NUM_IMAGES,), generator=generator)


def torch_func(num_runs: int, num_steps: int, save_every: int, chunk: int) -> dict:
    """torch.func: gradients mapped over stacked networks, one Adam over the stack."""
    torch, inputs, labels = _torch_data()
    a, b, c = SIZES

    def loss(params, x, y):
        w_1, b_1, w_2, b_2 = params
        return torch.nn.functional.cross_entropy(torch.relu(x @ w_1 + b_1) @ w_2 + b_2, y)

    gradient = torch.func.vmap(torch.func.grad(loss))
    shapes = ((a, b), (b,), (b, c), (c,))

    def train():
        params = [0.1 * torch.randn(num_runs, *shape) for shape in shapes]
        optimizer, saved = torch.optim.Adam(params, lr=1e-3), []
        for k in range(num_steps):
            index = torch.randint(0, NUM_IMAGES, (num_runs, BATCH))
            for param, grad in zip(params, gradient(tuple(params), inputs[index], labels[index]), strict=True):
                param.grad = grad
            optimizer.step()
            if (k + 1) % save_every == 0:
                saved.append(torch.cat([param.flatten(1) for param in params], 1))
        return torch.stack(saved)

    return {"seconds": _fastest(train, 2), "net_steps": num_runs * num_steps}


def torch_loop(num_runs: int, num_steps: int, save_every: int, chunk: int) -> dict:
    """A loop in Python: one network after the other, as training scripts are written."""
    torch, inputs, labels = _torch_data()
    a, b, c = SIZES

    def train():
        for _ in range(num_runs):
            model = torch.nn.Sequential(torch.nn.Linear(a, b), torch.nn.ReLU(), torch.nn.Linear(b, c))
            optimizer, saved = torch.optim.Adam(model.parameters(), lr=1e-3), []
            for k in range(num_steps):
                index = torch.randint(0, NUM_IMAGES, (BATCH,))
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[index]), labels[index]).backward()
                optimizer.step()
                if (k + 1) % save_every == 0:
                    saved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    return {"seconds": _fastest(train, 2), "net_steps": num_runs * num_steps}


def streaming(num_runs: int, num_steps: int, save_every: int, chunk: int) -> dict:
    """Recording to disk: the largest memory that the process ever held, in MB."""
    import jax
    import jax.numpy as jnp
    import optax

    from gfm_jax.runs import record, record_to_disk, save_steps

    task, key = _problem()
    keys, rates = jax.random.split(key, num_runs), jnp.full(num_steps, 1e-3)
    saves = save_steps(num_steps, num_steps // save_every)
    with tempfile.TemporaryDirectory() as folder:
        some = lambda index: record(keys[index], task, optax.adam, rates, saves)
        record_to_disk(folder + "/runs", num_runs, some, chunk=chunk, recipe={"of": "speed"}, progress=None)
        size = sum(os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": peak, "disk_mb": size / 2**20}


def forecast(width: int, num_saves: int, head: str) -> dict:
    """One forecast, features and all, and one training step of the same network, in seconds."""
    import jax
    import jax.numpy as jnp
    import optax

    from gfm_jax.fitting import fit
    from gfm_jax.forecasting import flow_map, horizon_at, prefix_of
    from gfm_jax.runs import record, save_steps

    task, key = _problem((width, 256, 10), 784)
    saves = save_steps(2 * num_saves, num_saves)
    rates = jnp.full(2 * num_saves, 1e-3)
    run = jax.jit(lambda key: record(key, task, optax.adam, rates, saves))(key)
    prefix, horizon = prefix_of(run, num_saves // 2), horizon_at(run, -1)
    # What is in the parameters does not matter to the time: fitted briefly, to small networks.
    small, _ = _problem((4, 10))
    runs = record(jax.random.split(key, 4), small, optax.adam, jnp.full(40, 1e-3), save_steps(40, 20))
    forecaster = flow_map(head=head, batch_size=64)
    params, _ = fit(key, forecaster, runs, num_steps=2)
    foretell = jax.jit(functools.partial(forecaster.forecast, params))
    seconds = _fastest(lambda: jax.block_until_ready(foretell(prefix, horizon)))

    optimizer = optax.adam(1e-3)
    weights = task.init(key)
    draws = task.draws(key, 20)

    @jax.jit
    def steps(weights, state):
        def step(carry, draw):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(task.loss)(weights, task.data, draw), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, state), draws)[0]

    state = optimizer.init(weights)
    step_seconds = _fastest(lambda: jax.block_until_ready(steps(weights, state))) / 20
    return {"seconds": seconds, "step_seconds": step_seconds, "num_weights": int(run.weights.shape[-1])}


OF_RUNS = {f.__name__: f for f in (gfm_jax, matrix_products, torch_func, torch_loop, streaming, forecast)}
CONTESTANTS = OF_RUNS | FLOWS | CONVOLUTIONS | WATCHING


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # before any thread is started
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(CONTESTANTS[sys.argv[1]](**json.loads(sys.argv[2]))))
