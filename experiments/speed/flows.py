"""Who is timed on flows: as `contestants`, each in a process of its own, on one core.

What is compared within JAX takes turns in one process; a peer in PyTorch takes turns with us process by process.
"""

import itertools
import time

import numpy as np

__all__ = ["FLOWS", "LOSSES", "NUM_IMAGES", "in_turn"]

NUM, DIM = 20_000, 2  # points to learn from
NUM_IMAGES = 2048


def in_turn(rounds: int, runs: dict) -> dict[str, list[float]]:
    """Seconds of every one, in every round, after a call of each that compiles."""
    for run in runs.values():
        run()
    found = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - begin)
    return found


def _fits(data, flows: dict, num_steps: int) -> dict:
    """A function for each of the flows that fits it, from where a first fit came to."""
    import jax

    from gfm_jax.fitting import fit

    starts = {name: fit(jax.random.key(0), flow, data, num_steps=num_steps)[0] for name, flow in flows.items()}
    again = lambda name: fit(jax.random.key(1), flows[name], data, num_steps=num_steps, start=starts[name])[0]
    return {name: lambda name=name: jax.block_until_ready(again(name).network) for name in flows}


def _points():
    return np.random.default_rng(0).normal(size=(NUM, DIM)).astype(np.float32)


LOSSES = {  # row: residual of `gfm_jax.flows`, and where its teacher's gradient stops
    "lsd": ("lsd", None),
    "esd": ("esd", "teacher"),
    "esd_joint": ("esd", "velocity"),
    "mean_flow": ("mean_flow", None),
    "psd_m": ("psd_midpoint", None),
}


def flow_steps(width: int, depth: int, batch: int, num_steps: int, losses: list[str], rounds: int) -> dict:
    """Seconds of a training step by every loss, 75 % of a batch on the diagonal, and of conditional flow matching."""
    from gfm_jax import flows
    from gfm_jax.networks import TimeMLP

    network = TimeMLP((width,) * depth)
    timed = {"flow_matching": flows.flow_matching(network, batch_size=batch)}
    for row in losses:
        residual, stop = LOSSES[row]
        residual = getattr(flows, residual)._replace(stop=stop)
        timed[row] = flows.flow_map(network, residual, diagonal_fraction=0.75, batch_size=batch)
    runs = _fits(_points(), timed, num_steps) | {"matrix_products": _products(width, depth, batch, num_steps)}
    return {"seconds": {name: [s / num_steps for s in seconds] for name, seconds in in_turn(rounds, runs).items()}}


def _products(width, depth, batch, num_steps):
    """The matrix products of as many training steps of a perceptron, and nothing else."""
    import jax

    sizes, rng = (DIM + 1, *[width] * depth, DIM), np.random.default_rng(0)
    normal = lambda shape: rng.normal(size=shape).astype(np.float32)
    weights = [normal(shape) / np.float32(np.sqrt(shape[0])) for shape in itertools.pairwise(sizes)]
    x, g = normal((batch, sizes[0])), normal((batch, sizes[-1]))

    def step(_, weights):
        inputs, moved = [x], []
        for w in weights[:-1]:
            inputs.append(inputs[-1] @ w)
        back = g + 1e-6 * (inputs[-1] @ weights[-1])  # so that the last product is made
        for h, w in zip(reversed(inputs), reversed(weights), strict=True):
            moved.append(w + 1e-9 * (h.T @ back))  # and the next step needs every one of these
            back = back @ w.T if h is not x else back
        return moved[::-1]

    products = jax.jit(lambda weights: jax.lax.fori_loop(0, num_steps, step, weights))
    return lambda: jax.block_until_ready(products(weights))


def flow_matching(width: int, depth: int, batch: int, num_steps: int) -> dict:
    """Our training step, as a user has it, for the comparison with torchcfm."""
    from gfm_jax.flows import flow_matching
    from gfm_jax.networks import TimeMLP

    flow = flow_matching(TimeMLP((width,) * depth), batch_size=batch)
    seconds = in_turn(1, _fits(_points(), {"ours": flow}, num_steps))["ours"][0]
    return {"seconds": seconds / num_steps}


def _torch_mlp(width, depth):
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (DIM + 1, *[width] * depth)
    layers = [
        layer
        for a, b in itertools.pairwise(sizes)
        for layer in (torch.nn.Linear(a, b), torch.nn.GELU(approximate="tanh"))
    ]
    return torch, torch.nn.Sequential(*layers, torch.nn.Linear(width, DIM))


def torchcfm(width: int, depth: int, batch: int, num_steps: int) -> dict:
    """The same network and optimizer, with paths and targets by torchcfm."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    torch, model = _torch_mlp(width, depth)
    data, matcher = torch.from_numpy(_points()), ConditionalFlowMatcher(sigma=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train():
        for _ in range(num_steps):
            x_1 = data[torch.randint(0, NUM, (batch,))]
            t, x_t, u_t = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
            optimizer.zero_grad()
            loss = ((model(torch.cat([t[:, None], x_t], 1)) - u_t) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()

    return {"seconds": in_turn(1, {"torch": train})["torch"][0] / num_steps}


def sampling(width: int, depth: int, num: int, num_steps: int, rounds: int) -> dict:
    """Seconds of `num` samples, in Euler steps and in one jump."""
    import jax

    from gfm_jax.fitting import fit
    from gfm_jax.flows import flow_map, sample
    from gfm_jax.networks import TimeMLP

    flow = flow_map(TimeMLP((width,) * depth))
    key, repeats = jax.random.key(0), 20
    params, _ = fit(key, flow, _points(), num_steps=1)
    jumps = lambda: [jax.block_until_ready(sample(key, flow, params, num)) for _ in range(repeats)]
    found = in_turn(rounds, {"one_jump": jumps, "euler_steps": _euler(width, depth, num, num_steps)})
    return {"seconds": found | {"one_jump": [seconds / repeats for seconds in found["one_jump"]]}}


def euler_steps(width: int, depth: int, num: int, num_steps: int) -> dict:
    """Our Euler steps, for the comparison with torchdiffeq."""
    return {"seconds": in_turn(1, {"ours": _euler(width, depth, num, num_steps)})["ours"][0]}


def _euler(width, depth, num, num_steps):
    import diffrax
    import jax

    from gfm_jax.fitting import fit
    from gfm_jax.flows import flow_matching, sample
    from gfm_jax.networks import TimeMLP

    flow, key = flow_matching(TimeMLP((width,) * depth)), jax.random.key(0)
    params, solver = fit(key, flow, _points(), num_steps=1)[0], diffrax.Euler()
    return lambda: jax.block_until_ready(sample(key, flow, params, num, num_steps=num_steps, solver=solver))


def torchdiffeq(width: int, depth: int, num: int, num_steps: int) -> dict:
    """As many Euler steps of the same network."""
    from torchdiffeq import odeint

    torch, model = _torch_mlp(width, depth)
    x_0, ends = torch.randn(num, DIM), torch.tensor([0.0, 1.0])
    velocity = lambda t, x: model(torch.cat([t.expand(len(x), 1), x], 1))

    @torch.no_grad()
    def solve():
        return odeint(velocity, x_0, ends, method="euler", options={"step_size": 1 / num_steps})

    return {"seconds": in_turn(1, {"torch": solve})["torch"][0]}


def closed_form(num: int, dim: int, num_queries: int, rounds: int) -> dict:
    """Seconds of u* and of its two matrix products, and the MB that it needs beyond data and queries."""
    import jax
    import jax.numpy as jnp

    from gfm_jax.flows import closed_form_velocity

    key_data, key_x = jax.random.split(jax.random.key(0))
    data, x = jax.random.normal(key_data, (num, dim)), jax.random.normal(key_x, (num_queries, dim))
    exact = jax.jit(lambda data, x: jax.vmap(lambda x: closed_form_velocity(data)(jnp.float32(0.3), x))(x))
    compiled = exact.lower(data, x).compile()
    products = jax.jit(lambda data, x: (x @ data.T) @ data)
    runs = {
        "matrix_products": lambda: jax.block_until_ready(products(data, x)),
        "closed_form": lambda: jax.block_until_ready(compiled(data, x)),
    }
    memory = compiled.memory_analysis()
    return {"seconds": in_turn(rounds, runs), "mb_beyond_data": memory.temp_size_in_bytes / 2**20}


def companions(side: int, channels: tuple[int, ...], batch: int, counts: tuple[int, ...], rounds: int) -> dict:
    """Seconds of a step of empirical flow matching of images by a U-Net, by the number of companions."""
    from gfm_jax.flows import EmpiricalTargets, flow_matching
    from gfm_jax.networks import UNet

    data = np.random.default_rng(0).normal(size=(NUM_IMAGES, side * side * 3)).astype(np.float32)
    network = UNet((side, side, 3), tuple(channels))
    targets = {str(num): EmpiricalTargets(num) if num > 1 else None for num in counts}
    flows = {name: flow_matching(network, targets=own, batch_size=batch) for name, own in targets.items()}
    return {"seconds": in_turn(rounds, _fits(data, flows, 1))}


FLOWS = {
    f.__name__: f
    for f in (flow_steps, flow_matching, torchcfm, sampling, euler_steps, torchdiffeq, closed_form, companions)
}
