"""The compiled steps of a fit: what it carries from step to step, and the program of many steps."""

import functools
import inspect

import jax
import jax.numpy as jnp
import optax

from gfm_jax.convolutions import fast_in_loops

__all__ = ["Program", "merge_frozen", "split_frozen", "start_state", "take_steps", "wide"]


class Program:
    """What a compiled fit is of. Equal configs make equal programs, so that a second, identical fit compiles nothing."""

    def __init__(self, kind, learner, optimizer, ema_decay, chunk, mesh):
        self.learner, self.optimizer, self.ema_decay, self.chunk, self.mesh = learner, optimizer, ema_decay, chunk, mesh
        functions = (learner.loss, learner.sample) if learner.config is None else learner.config
        self.key = (functions, learner.frozen, kind, ema_decay, chunk, mesh)

    def __eq__(self, other):
        return isinstance(other, Program) and self.key == other.key

    def __hash__(self):
        return hash(self.key)


def split_frozen(learner, params):
    """The parameters that move, and those that are frozen; None in the place of the others."""
    is_frozen = lambda path: jax.tree_util.keystr(path[:1], simple=True) in learner.frozen
    moving = jax.tree_util.tree_map_with_path(lambda path, leaf: None if is_frozen(path) else leaf, params)
    frozen = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if is_frozen(path) else None, params)
    return moving, frozen


def merge_frozen(moving, frozen):
    """Both again as one."""
    return jax.tree.map(lambda a, b: b if a is None else a, moving, frozen, is_leaf=lambda leaf: leaf is None)


def start_state(optimizer, params, frozen):
    """Parameters, optimizer state, average and frozen parameters, copied, since the loop gives their buffers away."""
    params, frozen = jax.tree.map(_copy, (params, frozen))
    opt_state = optimizer.init(params)
    looks_ahead = lambda node: isinstance(node, optax.LookaheadState)
    if any(map(looks_ahead, jax.tree.leaves(opt_state, is_leaf=looks_ahead))) and _fast(params) is params:
        raise ValueError(
            "params: expected optax.LookaheadParams.init_synced(params), which optax.lookahead moves, got "
            f"{type(params).__name__}"
        )
    return params, jax.tree.map(_copy, opt_state), jax.tree.map(lambda leaf: _copy(wide(leaf)), params), frozen


def _copy(leaf):
    """A copy of an array; numbers of this process are copied without compiling a program."""
    plain = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.number)
    if plain and leaf.is_fully_addressable and not leaf.weak_type:
        return jax.device_put(leaf, may_alias=False)
    return jnp.array(leaf)


def wide(leaf):
    """Floats in float32 at least, in which sums and averages do not stand still."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def take_steps(program, key, state, data, start, length):
    """`length` steps, at most `chunk`, from step `start` on; what the others say is 0. One program for any length."""
    learner, chunk, mesh, frozen = program.learner, program.chunk, program.mesh, state[-1]
    update = _updater(program.optimizer)

    def scalar_loss(params, key_loss, batch):
        found = learner.loss(merge_frozen(params, _fast(frozen)), key_loss, batch)
        if not (isinstance(found, tuple) and len(found) == 2 and jnp.shape(found[0]) == ()):
            shapes = jax.tree.map(jnp.shape, found)
            raise ValueError(f"loss: expected (scalar, info) from loss(params, key, batch), got shapes {shapes}")
        return found

    @jax.jit  # traced once, for the shapes of a batch and for the loop
    def draw(k):
        key_batch, key_loss = jax.random.split(jax.random.fold_in(key, k))
        batch = learner.sample(key_batch, data)
        return key_loss, batch if mesh is None else _over_devices(batch, mesh)

    @jax.jit  # traced once, for the shapes of what it says and for the loop
    def value_and_gradient(params, key_loss, batch):
        return jax.value_and_grad(scalar_loss, has_aux=True)(params, key_loss, batch)

    def step(i, carry):
        (params, opt_state, averaged, _), said = carry
        k = start + i
        drawn = draw(k)
        value, gradient = value_and_gradient(_fast(params), *drawn)
        says = value, optax.tree.norm(jax.tree.map(wide, gradient))
        of_batch = lambda params: scalar_loss(params, *drawn)
        updates, opt_state = update(gradient, opt_state, params, value[0], of_batch)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(program.ema_decay, (1 + k) / (10 + k))
        averaged = optax.incremental_update(jax.tree.map(wide, params), averaged, 1 - decay)
        return (params, opt_state, averaged, frozen), jax.tree.map(lambda all, one: all.at[i].set(one), said, says)

    value, gradient = jax.eval_shape(lambda params, k: value_and_gradient(_fast(params), *draw(k)), state[0], start)
    says = value, jax.eval_shape(lambda gradient: optax.tree.norm(jax.tree.map(wide, gradient)), gradient)
    nothing = jax.tree.map(
        lambda one: jnp.zeros((chunk, *one.shape), one.dtype), says
    )  # no NaN: a debugger looks for them
    return jax.lax.fori_loop(0, length, fast_in_loops(step), (state, nothing))


def _fast(params):
    """The parameters that a loss is of."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _over_devices(batch, mesh):
    num = mesh.devices.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if leaf.ndim == 0 or leaf.shape[0] % num:
            name = f"batch{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"mesh: its {num} devices must divide the examples that lead every array of a batch, got {name} {leaf.shape}"
            )
    over_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    return jax.lax.with_sharding_constraint(batch, over_batch)


def _updater(optimizer):
    """`(gradient, state, params, value, of_batch) -> updates, state`, with the extra arguments that the optimizer asks for."""
    taken = inspect.signature(optimizer.update).parameters.values()
    names = {parameter.name for parameter in taken}
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)

    def update(gradient, state, params, value, of_batch):
        # Optax's line searches refuse extra arguments that `value_fn` does not take.
        value_fn = lambda params, grad_fn=None: of_batch(params)[0]
        # Methods with several stages ask for the gradient elsewhere, on the same batch; SAM hands the number of the stage over.
        grad_fn = lambda params, *_: jax.grad(value_fn)(params)
        extra = {"value": value, "grad": gradient, "value_fn": value_fn, "grad_fn": grad_fn}
        if any_name:
            return optimizer.update(gradient, state, params, **extra)
        return optimizer.update(gradient, state, params, **{name: extra[name] for name in extra.keys() & names})

    return update
