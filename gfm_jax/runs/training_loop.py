"""The loop of a training run that is recorded: steps between saves, and what each save holds."""

import functools

import jax
import jax.numpy as jnp
import optax

from gfm_jax.base import Trajectory
from gfm_jax.optimizers.accumulators import as_accumulator
from gfm_jax.optimizers.whole_gradient import WholeGradient, whole_params
from gfm_jax.pytrees import layout_of, ravel
from gfm_jax.runs.slots import optimizer_slots
from gfm_jax.runs.update_plan import as_dtypes, functions_of

__all__ = ["train"]


def train(weights, draws, loss, data, optimizer, plan, learning_rate, saves, keep, dtype):
    init, update = functions_of(optimizer(lambda count: learning_rate[_index(count)]))
    value_and_gradient = jax.value_and_grad(loss)
    want_mean, want_gradient = "mean_weights" in keep, "gradient" in keep

    def step(k, carry):
        weights, state, tally, sums = carry
        draw = jax.tree.map(lambda leaf: leaf[k], draws)
        value, gradient = value_and_gradient(weights, data, draw)
        extra = {
            "value": value,
            "grad": gradient,
            # Elsewhere, on the same minibatch: for line searches, and for methods with several stages.
            "value_fn": lambda at, grad_fn=None: loss(whole_params(at, weights), data, draw),
            "grad_fn": WholeGradient(lambda at, *_: value_and_gradient(at, data, draw)[1], weights),
        }
        updates, new_state = update(gradient, state, weights, **{name: extra[name] for name in plan.extra})
        new_state = as_dtypes(new_state, plan.dtypes)
        tally = tallied(k, tally, state, new_state, updates)
        weights = optax.apply_updates(weights, updates)
        return weights, new_state, tally, jax.tree.map(jnp.add, sums, summed(value, gradient, weights))

    def summed(loss, gradient, weights):
        return jax.tree.map(as_accumulator, (loss, gradient if want_gradient else (), weights if want_mean else ()))

    def tallied(k, tally, state, new_state, updates):
        """(sum of the rates used, rate used last) after a step, where the counters at a save do not tell them."""
        if not plan.clock.by_step:
            return ()
        old, new = jax.tree.leaves(state), jax.tree.leaves(new_state)
        if plan.clock.own is not None:
            rate = (new[plan.clock.own] - old[plan.clock.own]).astype(learning_rate.dtype)
            taken = rate > 0
        else:
            counts = [(_index(old[i] - start[i]), new[i] != old[i]) for i in plan.clock.counters]
            # Where parts of the weights have counters of their own, the one that has taken most steps.
            last = functools.reduce(jnp.maximum, [jnp.where(moved, n, -1) for n, moved in counts]) if counts else k
            moves = functools.reduce(jnp.logical_or, [jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates)])
            # A step of rate 0 moves nothing, and adds nothing.
            taken = (last >= 0) & (moves | (learning_rate[last] == 0))
            rate = learning_rate[last]
        total, before = tally
        return jnp.where(taken, total + rate, total), jnp.where(taken, rate, before)

    def snapshot(weights, state, loss, gradient, mean_weights):
        flat = lambda tree: ravel(tree).astype(dtype)
        parts = {
            "weights": lambda: flat(weights),
            "mean_weights": lambda: flat(mean_weights),
            "gradient": lambda: flat(gradient),
            "state": lambda: {name: flat(slot) for name, slot in optimizer_slots(state, weights).items()},
            "loss": lambda: loss,
        }
        return {name: part() for name, part in parts.items() if name in keep}

    def segment(carry, bounds):
        begin, end = bounds
        look = end == 0  # save 0 looks at the first minibatch without taking the step
        sums = optax.tree.zeros_like(summed(learning_rate[0].astype(loss_dtype), carry[0], carry[0]))
        *moved, sums = jax.lax.fori_loop(begin, jnp.maximum(end, 1), step, (*carry, sums))
        weights, state, tally = jax.tree.map(lambda old, new: jnp.where(look, old, new), carry, tuple(moved))
        value, gradient, mean = jax.tree.map(
            lambda total: total / jnp.maximum(end - begin, 1).astype(total.dtype), sums
        )
        mean = jax.tree.map(lambda mean, w: jnp.where(look, w, mean), mean, weights if want_mean else ())
        finite = optax.tree.norm(jax.tree.map(as_accumulator, weights), squared=True) < jnp.inf
        saved = snapshot(weights, state, value, gradient, mean)
        if dtype == jnp.float16 and "weights" in saved:  # what is too large for it
            finite &= jnp.isfinite(saved["weights"]).all()
        counts = [jax.tree.leaves(state)[i] for i in plan.clock.counters]
        return (weights, state, tally), (saved, finite, tally if plan.clock.by_step else counts)

    first_draw = jax.tree.map(lambda leaf: leaf[0], draws)
    loss_dtype = jax.eval_shape(loss, weights, data, first_draw).dtype
    state = as_dtypes(init(weights), plan.dtypes)
    start = dict(enumerate(jax.tree.leaves(state)))
    tally = (jnp.zeros((), learning_rate.dtype), learning_rate[0]) if plan.clock.by_step else ()
    bounds = jnp.asarray([0, *saves[:-1]]), jnp.asarray(saves)
    _, (arrays, finite, clocks) = jax.lax.scan(segment, (weights, state, tally), bounds)
    saves = jnp.asarray(saves, jnp.int32)
    if plan.clock.by_step:
        time, rate = clocks
    else:
        taken = [count - start[i] for i, count in zip(plan.clock.counters, clocks, strict=True)]
        time, rate = _read(learning_rate, functools.reduce(jnp.maximum, taken) if taken else saves)
    return Trajectory(
        step=saves,
        time=time,
        learning_rate=rate if "learning_rate" in keep else None,
        finite=finite.all(),
        layout=layout_of(weights),
        **arrays,
    )


def _index(count):
    """A counter as an index: those of `joint_runge_kutta` with another `step` than 1 are floating-point numbers."""
    if jnp.issubdtype(jnp.result_type(count), jnp.floating):
        return jnp.floor(count + 1e-3).astype(jnp.int32)
    return count


def _read(learning_rate, taken):
    """The sum of the rates of the first `taken` steps, and the last of them."""
    clock = jnp.concatenate([jnp.zeros(1, learning_rate.dtype), jnp.cumsum(learning_rate)])
    if jnp.issubdtype(taken.dtype, jnp.floating):
        time = jnp.interp(taken.astype(clock.dtype), jnp.arange(len(clock), dtype=clock.dtype), clock)
        return time, learning_rate[jnp.maximum(jnp.ceil(taken - 1e-3).astype(jnp.int32) - 1, 0)]
    return clock[taken], learning_rate[jnp.maximum(taken - 1, 0)]
