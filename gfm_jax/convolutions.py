"""Convolutions for loops on a CPU: brought into the order for which XLA has a fast kernel."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

__all__ = ["fast_in_loops"]

CONVOLUTION = "conv_general_dilated"


def fast_in_loops(function: Callable) -> Callable:
    """The same function, to be called inside a loop: there its convolutions are as fast on a CPU as outside of it.

    XLA's CPU backend has a fast kernel for convolutions of [batch, *space, channels] with [*space, inputs, outputs] alone.
    It brings others into that order, those of a gradient above all, but not inside `jax.lax.scan`, `fori_loop` or `map`, where
    they take a path that is 5 to 27 times slower. This function does it for them, and maps over groups, which
    `jax.vmap` over kernels makes.

    Use it on a whole step, with its gradient and its `jax.vmap`, not on a loss that is differentiated later: derivatives of
    a convolution are convolutions of another order. On a GPU or TPU it is the function itself, and without a convolution
    the same program.

    Args:
      function: pure, of arrays alone. Convolutions inside `jax.custom_jvp`, `jax.custom_vjp` and `jax.shard_map` stay as they
        are.

    Returns:
      A function of the same arguments, with the same values to rounding.

    >>> import jax
    >>> image, kernel = jax.numpy.ones((1, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 2))
    >>> order = ("NHWC", "HWIO", "NHWC")
    >>> smooth = lambda x: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=order)
    >>> fast_in_loops(jax.grad(lambda x: smooth(x).sum()))(image).shape
    (1, 8, 8, 3)
    """

    @functools.wraps(function)
    def call(*args):
        if jax.default_backend() != "cpu":
            return function(*args)
        program, like = jax.make_jaxpr(function, return_shape=True)(*args)
        run = _evaluate(program) if _holds_one(program.jaxpr) else core.jaxpr_as_fun(program)  # traced once, either way
        return jax.tree.unflatten(jax.tree.structure(like), run(*jax.tree.leaves(args)))

    return call


def _inner(equation) -> Iterator[core.Jaxpr]:
    """The programs in an equation's parameters: the body of a loop, the branches of a condition."""
    is_program = lambda value: isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    for value in jax.tree.leaves(equation.params, is_leaf=is_program):
        if is_program(value):
            yield getattr(value, "jaxpr", value)


def _holds_one(jaxpr: core.Jaxpr) -> bool:
    return any(e.primitive.name == CONVOLUTION or any(map(_holds_one, _inner(e))) for e in jaxpr.eqns)


def _evaluate(program: core.ClosedJaxpr | core.Jaxpr) -> Callable[..., list[Array]]:
    """The function that a traced program is, with its convolutions in order."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())

    def run(*args):
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else known[atom]
        for equation in jaxpr.eqns:
            with equation.ctx.manager:
                outputs = _rule(equation)(*map(read, equation.invars))
            outputs = outputs if equation.primitive.multiple_results else (outputs,)
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return list(map(read, jaxpr.outvars))

    return run


def _rule(equation) -> Callable:
    name = equation.primitive.name
    if name == CONVOLUTION:
        return functools.partial(_in_order, equation.params)
    if name in RULES and any(map(_holds_one, _inner(equation))):
        return RULES[name](equation.params)
    return _as_traced(equation)


def _as_traced(equation):
    found = equation.primitive.get_bind_params(equation.params)
    functions, params = found if isinstance(found, tuple) else ((), found)  # the first before JAX 0.8
    return lambda *args: equation.primitive.bind(*functions, *args, **params)


# --- what holds a program ---------------------------------------------------------------------------------------------


def _call(params):
    return _evaluate(params["jaxpr"])


def _checkpoint(params):
    return jax.checkpoint(_evaluate(params["jaxpr"]), prevent_cse=params["prevent_cse"], policy=params["policy"])


def _scan(params):
    body = _evaluate(params["jaxpr"])

    def run(*args):
        consts, carried, rows = _scanned(params, args)

        def step(carried, row):
            found = body(*consts, *carried, *row)
            return found[: len(carried)], found[len(carried) :]

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carried, stacked = lax.scan(step, list(carried), list(rows), **options)
        return [*carried, *stacked]

    return run


def _scanned(params, args):
    """Constants, what is carried, and what is scanned over, of the arguments of a scan."""
    if "ft_in" in params:  # since JAX 0.12
        return map(list, params["ft_in"].update(args).unpack())
    num_consts, num_carried = params["num_consts"], params["num_carry"]
    return args[:num_consts], args[num_consts:][:num_carried], args[num_consts + num_carried :]


def _while(params):
    in_condition, in_body = params["cond_nconsts"], params["body_nconsts"]
    condition, body = _evaluate(params["cond_jaxpr"]), _evaluate(params["body_jaxpr"])

    def run(*args):
        of_condition, of_body, start = (
            args[:in_condition],
            args[in_condition:][:in_body],
            args[in_condition + in_body :],
        )
        return lax.while_loop(lambda x: condition(*of_condition, *x)[0], lambda x: body(*of_body, *x), list(start))

    return run


def _cond(params):
    branches = list(map(_evaluate, params["branches"]))
    return lambda index, *args: lax.switch(index, branches, *args)


RULES = {
    "pjit": _call,
    "jit": _call,
    "closed_call": _call,
    "checkpoint": _checkpoint,
    "remat2": _checkpoint,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


# --- a convolution ----------------------------------------------------------------------------------------------------


def _in_order(params, x, w):
    """The convolution between a transposition of its operands and one of its result; one after the other for groups."""
    of_x, of_w, of_y = params["dimension_numbers"]
    x = x.transpose(of_x[0], *of_x[2:], of_x[1])
    w = w.transpose(*of_w[2:], of_w[1], of_w[0])
    along_batch, along_channels = params["batch_group_count"], params["feature_group_count"]
    if along_batch > 1:  # group g: its part of the batch, and of the outputs
        x_groups = x.reshape(along_batch, -1, *x.shape[1:])
        y = _mapped(params, x_groups, _split_last(w, along_batch))
    elif along_channels > 1 and w.shape[-2] > 1:  # group g: its part of the channels, and of the outputs
        y = _mapped(params, _split_last(x, along_channels), _split_last(w, along_channels))
    else:  # groups of one channel each have a fast kernel
        y = _convolve(params, x, w, along_channels)
    back = sorted(range(y.ndim), key=(of_y[0], *of_y[2:], of_y[1]).__getitem__)
    return y.transpose(back)


def _split_last(array, groups):
    return jnp.moveaxis(array.reshape(*array.shape[:-1], groups, -1), -2, 0)


def _mapped(params, x_groups, w_groups):
    y = lax.map(lambda pair: _convolve(params, *pair, groups=1), (x_groups, w_groups))
    y = jnp.moveaxis(y, 0, -2)
    return y.reshape(*y.shape[:-2], -1)


def _convolve(params, x, w, groups):
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "precision", "preferred_element_type")
    space = tuple(range(1, x.ndim - 1))
    order = lax.ConvDimensionNumbers(
        (0, x.ndim - 1, *space), (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)), (0, x.ndim - 1, *space)
    )
    return lax.conv_general_dilated(
        x, w, dimension_numbers=order, feature_group_count=groups, **{name: params[name] for name in names}
    )
