"""What a convolution costs in the loops of `record` and `fit`, over the plain jitted step that a user would write."""

import numpy as np

from experiments.speed.flows import in_turn

__all__ = ["CONVOLUTIONS"]

MANY = 16  # runs side by side


def convolutional_runs(batch: int, num_steps: int, rounds: int) -> dict:
    """Seconds of a step of a network of two `nn.Conv` on images of digits: alone, and recorded, one run and a share of many."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import gfm_jax as gfm

    net = nn.Sequential(
        [nn.Conv(16, (3, 3)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2)), nn.Conv(32, (3, 3)), nn.relu,
         lambda x: x.mean((1, 2)), nn.Dense(10)]
    )  # fmt: skip
    images, labels = gfm.load_dataset("digits")
    images = images.astype(np.float32) / 255
    network = gfm.Network(lambda key: net.init(key, jnp.zeros((1, *images.shape[1:]))), net.apply)
    task = gfm.classification(network, {"train": (images, labels)}, batch_size=batch)
    optimizer, draws = optax.sgd(0.1), task.draws(jax.random.key(0), num_steps, None)

    @jax.jit
    def step(weights, state, draw):
        updates, state = optimizer.update(jax.grad(task.loss)(weights, task.data, draw), state, weights)
        return optax.apply_updates(weights, updates), state

    def plain():
        weights = task.init(jax.random.key(0))
        state = optimizer.init(weights)
        for k in range(num_steps):
            weights, state = step(weights, state, jax.tree.map(lambda leaf, k=k: leaf[k], draws))
        jax.block_until_ready(weights)

    def recorded(num):
        keys = jax.random.split(jax.random.key(0), num)
        rates, saves = np.full(num_steps, 0.1), (0, num_steps)
        return lambda: jax.block_until_ready(gfm.record(keys, task, optax.sgd, rates, saves, keep=("weights",)).weights)

    names = ("record, one run", f"record, {MANY} runs")
    runs = {"plain step": plain} | dict(zip(names, map(recorded, (1, MANY)), strict=True))
    seconds = in_turn(rounds, runs)
    parts = {"plain step": 1, names[0]: 1, names[1]: MANY}
    return {"seconds": {row: [one / num_steps / parts[row] for one in seconds[row]] for row in seconds}}


def unet_steps(side: int, channels: tuple[int, ...], batch: int, num_steps: int, rounds: int) -> dict:
    """Seconds of a gradient step of a U-Net: alone, and in a fit."""
    import jax
    import jax.numpy as jnp
    import optax

    from gfm_jax.base import Learner
    from gfm_jax.fitting import fit
    from gfm_jax.networks import UNet

    network, optimizer = UNet((side, side, 3), tuple(channels)), optax.sgd(1e-3)
    rng = np.random.default_rng(0)
    x, times = (jnp.asarray(rng.uniform(size=shape), jnp.float32) for shape in ((batch, side * side * 3), (batch, 1)))
    params = network.init(jax.random.key(0), times[0], x[0])
    loss = lambda params, key, batch: ((jax.vmap(lambda t, x: network.apply(params, t, x))(*batch) ** 2).mean(), {})

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(lambda p: loss(p, None, (times, x))[0])(params), state, params)
        return optax.apply_updates(params, updates), state

    def plain():
        found = params, optimizer.init(params)
        for _ in range(num_steps):
            found = step(*found)
        jax.block_until_ready(found)

    learner = Learner(lambda key, data: params, lambda key, data: data, loss)
    fitted = lambda: fit(jax.random.key(0), learner, (times, x), optimizer=optimizer, num_steps=num_steps)[0]
    seconds = in_turn(rounds, {"plain step": plain, "fit": lambda: jax.block_until_ready(fitted())})
    return {"seconds": {row: [one / num_steps for one in found] for row, found in seconds.items()}}


CONVOLUTIONS = {f.__name__: f for f in (convolutional_runs, unet_steps)}
