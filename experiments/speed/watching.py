"""What it costs to watch a run: a training step whose optimizer keeps the history, over the same step without it."""

from experiments.speed.flows import in_turn

__all__ = ["WATCHING"]


def watched_steps(width: int, batch: int, num_steps: int, rounds: int) -> dict:
    """Seconds of a step of Adam on a network 784-width-256-10: alone, and watched, from the first step of a run on.

    The first saves of a run are close to one another: 32 in 32 steps, then 16 in each doubling of the run.
    """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import gfm_jax as gfm

    net = nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(256), nn.relu, nn.Dense(10)])
    x, labels = jax.random.normal(jax.random.key(0), (batch, 784)), jnp.arange(batch) % 10
    start = net.init(jax.random.key(1), x)
    loss = lambda weights: optax.softmax_cross_entropy_with_integer_labels(net.apply(weights, x), labels).mean()

    def run_of(optimizer):
        def step(weights, state):
            value, gradient = jax.value_and_grad(loss)(weights)
            updates, state = optimizer.update(gradient, state, weights, value=value)
            return optax.apply_updates(weights, updates), state

        step = jax.jit(step, donate_argnums=(0, 1))

        def run():
            weights = jax.tree.map(jnp.copy, start)
            found = weights, optimizer.init(weights)
            for _ in range(num_steps):
                found = step(*found)
            jax.block_until_ready(found)

        return run

    adam = optax.with_extra_args_support(optax.adam(1e-3))
    kept = {"weights": (), "weights, means": ("mean_weights",), "all": ("mean_weights", "gradient", "state")}
    runs = {"plain step": run_of(adam)} | {
        f"watched: {name}": run_of(gfm.watch(adam, 1e-3, keep=keep)) for name, keep in kept.items()
    }
    seconds = in_turn(rounds, runs)
    return {
        "seconds": {row: [one / num_steps for one in found] for row, found in seconds.items()},
        "weights": sum(leaf.size for leaf in jax.tree.leaves(start)),
    }


WATCHING = {watched_steps.__name__: watched_steps}
