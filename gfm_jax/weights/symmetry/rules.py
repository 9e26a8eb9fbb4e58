"""What every operation of a program does to the axes of its arrays."""

import jax.numpy as jnp

from gfm_jax.weights.symmetry.axes import Axes, Leg

__all__ = ["RULES"]

MANTISSA = 7  # bits, those of bfloat16: numbers with fewer are steps rather than rounded numbers


def _combine(book, eqn, arrays, signs: list | None) -> Axes:
    """Entries of several arrays, each with its partner: over the same families; with `signs` the degrees add up so weighted,
    without they are equal, and zero beside entries that are alike but not zero."""
    arrays = [array for array in arrays if array.axes or not array.zero]
    shape = eqn.outvars[0].aval.shape
    full = [array for array in arrays if len(array.axes) == len(shape)]
    if signs is None:
        full.sort(key=lambda array: array.zero)  # what is not zero first, for the others to be compared with
    number_beside = bool(shape) and any(not array.axes and not array.zero for array in arrays)
    axes = []
    for place, size in enumerate(shape):
        alike = book.uniform((size,)).axes[0]  # what an axis of size 1 is beside a longer one
        axis, *others = (array.axes[place] or alike for array in full)
        if signs is None:
            for array, other in zip(full[1:], others, strict=True):
                axis = _equal(book, axis, other, full[0].zero, array.zero)
            if number_beside:
                book.weightless(axis)
        else:
            for other, sign in zip(others, signs[1:], strict=True):
                axis = _product(book, axis, other, sign)
        axes.append(tuple(axis))
    return Axes(tuple(axes), bool(full) and not number_beside and all(array.zero for array in full))


def _equal(book, a, b, a_zero, b_zero):
    pairs = book.match(a, b)
    if pairs is None:
        return a
    for first, second in pairs:
        if a_zero or b_zero:
            continue  # zero scales as anything does
        if first.family is None or second.family is None:
            for leg in (first, second):
                book.relate(leg, (leg.degree, 1))
        else:
            book.relate(first, (first.degree, 1), (second.degree, -1))
    if a_zero:
        return tuple(second if second.family is not None else first for first, second in pairs)
    return tuple(first if first.family is not None else second for first, second in pairs)


def _product(book, a, b, sign):
    pairs = book.match(a, b)
    if pairs is None:
        return a
    legs = []
    for first, second in pairs:
        if first.family is None and second.family is None:
            legs.append(first)
            continue
        leg = first if first.family is not None else second
        out = Leg(leg.family, leg.size, book.degree())
        book.relate(out, (first.degree, 1), (second.degree, sign), (out.degree, -1))
        legs.append(out)
    return tuple(legs)


def _alike(book, eqn, *arrays):  # add, sub, max, min
    return _combine(book, eqn, arrays, None)


def _times(book, eqn, *arrays):
    if not all(len(array.axes) == len(eqn.outvars[0].aval.shape) for array in arrays):
        return next(array for array in arrays if array.axes)  # a plain number
    return _combine(book, eqn, arrays, [1, 1])._replace(zero=any(array.zero for array in arrays))


def _over(book, eqn, above, below):
    if len(above.axes) == len(below.axes):
        return _combine(book, eqn, [above, below], [1, -1])._replace(zero=False)
    return above if above.axes else _scaled(book, below, -1)._replace(zero=False)


def _compare(book, eqn, *arrays):
    """Of what scales alike, the order does not depend on the scale."""
    return _to_degree_zero(book, _combine(book, eqn, arrays, None))


def _to_degree_zero(book, array):
    plain = lambda leg: leg._replace(degree=None)
    return Axes(tuple(tuple(plain(leg) for leg in book.expand(axis)) for axis in array.axes))


def _select(book, eqn, which, *cases):
    """A choice among cases that scale alike, by what scales as nothing does; it tells apart the units of either."""
    chosen = _combine(book, eqn, cases, None)
    if not which.axes:
        return chosen
    axes = []
    for axis, by in zip(chosen.axes, which.axes, strict=True):
        pairs = book.match(axis, by)
        if pairs is None:
            axes.append(axis)
            continue
        for _, leg in pairs:
            book.relate(leg, (leg.degree, 1))
        axes.append(tuple(leg if leg.family is not None else other._replace(degree=None) for leg, other in pairs))
    return Axes(tuple(axes), chosen.zero)


def _scaled(book, array, factor):
    """The same families, with degrees `factor` times as high."""

    def one(leg):
        if leg.family is None or leg.degree is None:
            return leg
        out = Leg(leg.family, leg.size, book.degree())
        book.relate(out, (leg.degree, factor), (out.degree, -1))
        return out

    return Axes(tuple(tuple(one(leg) for leg in book.expand(axis)) for axis in array.axes), array.zero)


def _power(book, eqn, array):
    y = eqn.params["y"]
    return _scaled(book, array, float(y))._replace(zero=array.zero and y > 0)


def _cast(book, eqn, array):
    """To floating-point numbers that round little, the same; to truth values, whether it is zero; else a curved function."""
    to = eqn.outvars[0].aval.dtype
    if jnp.issubdtype(to, jnp.inexact) and jnp.finfo(to).nmant >= MANTISSA:
        return array
    return _to_degree_zero(book, array) if to == jnp.bool_ else _curved(book, eqn, array)


def _rounded(book, eqn, array):
    return array if eqn.params["mantissa_bits"] >= MANTISSA else _curved(book, eqn, array)


def _curved(book, eqn, *arrays):
    """A function of every entry that scales as nothing does."""
    array = _combine(book, eqn, arrays, None)
    for axis in array.axes:
        book.weightless(axis)
    return _to_degree_zero(book, array)


def _reduce(book, eqn, array, *_):
    gone = eqn.params["axes"]
    for place in gone:
        book.weightless(array.axes[place])
    return Axes(tuple(axis for place, axis in enumerate(array.axes) if place not in gone), array.zero)


def _contract(book, a, b):
    """A sum over products of entries: their degrees cancel."""
    for first, second in book.match(a, b) or ():
        book.relate(first if first.family is not None else second, (first.degree, 1), (second.degree, 1))


def _dot(book, eqn, left, right):
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    for i, j in zip(left_sum, right_sum, strict=True):
        _contract(book, left.axes[i], right.axes[j])
    batch = [_product(book, left.axes[i], right.axes[j], 1) for i, j in zip(left_batch, right_batch, strict=True)]
    free = [axis for i, axis in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [axis for j, axis in enumerate(right.axes) if j not in (*right_sum, *right_batch)]
    return Axes((*batch, *free))


def _convolve(book, eqn, image, kernel):
    spec, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    shape = eqn.outvars[0].aval.shape
    if eqn.params["batch_group_count"] != 1:
        return _unknown(book, eqn, image, kernel)
    (batch, channel, *space), (out, into, *window), (out_batch, out_channel, *_) = spec
    for place in space:
        book.pin_axis(image.axes[place])
    for place in window:
        book.pin_axis(kernel.axes[place])
    axes = list(book.pinned(shape).axes)
    axes[out_batch] = image.axes[batch]
    if groups == 1:
        _contract(book, image.axes[channel], kernel.axes[into])
        axes[out_channel] = kernel.axes[out]
    elif groups == eqn.invars[0].aval.shape[channel] == shape[out_channel]:
        axes[out_channel] = _product(book, image.axes[channel], kernel.axes[out], 1)
    else:
        for axis in (image.axes[channel], kernel.axes[into], kernel.axes[out]):
            book.pin_axis(axis)
    return Axes(tuple(axes))


def _broadcast(book, eqn, array, *_):
    shape, where = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    axes = list(book.uniform(shape).axes)
    for place, axis in zip(where, array.axes, strict=True):
        if axis:
            axes[place] = axis
    return Axes(tuple(axes), array.zero)


def _transpose(book, eqn, array):
    return Axes(tuple(array.axes[place] for place in eqn.params["permutation"]), array.zero)


def _unknown(book, eqn, *arrays):
    """No symmetry is claimed."""
    for array in arrays:
        book.pin(array)
    return book.pinned(eqn.outvars[0].aval.shape)


def _reshape_in_order(book, eqn, array, *others):
    if eqn.params.get("dimensions") is not None:  # another order of the entries than that of the axes
        return _unknown(book, eqn, array)
    return _reshape(book, eqn, array, *others)


def _reshape(book, eqn, array, *_):
    legs, axes = [leg for axis in array.axes for leg in book.expand(axis)], []
    for size in eqn.outvars[0].aval.shape:
        axis, got = [], 1
        while got < size:
            leg = legs.pop(0)
            wanted = size // got
            if leg.size > wanted or wanted % leg.size:
                if leg.size % wanted:  # the cut goes through the middle of units
                    return _unknown(book, eqn, array)
                leg, rest = book.split(leg, wanted)
                legs = book.expand([rest]) + book.expand(legs)
            axis.append(leg)
            got *= leg.size
        axes.append(tuple(axis))
    return Axes(tuple(axes), array.zero)


def _keep(book, eqn, array, kept):
    """Keeps the axes of which that is true, and pins the others, before and after."""
    fresh = book.pinned(eqn.outvars[0].aval.shape)
    axes = []
    for axis, new, keeps in zip(array.axes, fresh.axes, kept, strict=True):
        if not keeps:
            book.pin_axis(axis)
        axes.append(axis if keeps else new)
    return Axes(tuple(axes), array.zero)


def _slice(book, eqn, array, *indices):
    """Of an axis whose size stays, a slice is the whole: it cannot reach beyond the ends."""
    for index in indices:
        book.pin(index)
    sizes = zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)
    return _keep(book, eqn, array, [before == after for before, after in sizes])


def _pad(book, eqn, array, filler):
    """An axis stays only where nothing is added or taken away at either end or between its entries."""
    found = _keep(book, eqn, array, [not any(config) for config in eqn.params["padding_config"]])
    if not filler.zero:
        for axis in found.axes:
            book.weightless(axis)
    return found._replace(zero=array.zero and filler.zero)


def _window(book, eqn, array, *_):
    """Pooling: an axis stays only where every window is one entry, at every entry, and there are no others."""
    at = eqn.params
    dims = zip(at["window_dimensions"], at["window_strides"], at["padding"], at["base_dilation"], strict=True)
    whole = [(width, stride, tuple(pad), base) == (1, 1, (0, 0), 1) for width, stride, pad, base in dims]
    return _keep(book, eqn, array, whole)


def _concatenate(book, eqn, *arrays):
    """Pieces of equal size, one after the other, are blocks of the same units; others stay in their places."""
    place, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    sizes = {var.aval.shape[place] for var in eqn.invars}
    axes = []
    for k, axis in enumerate(arrays[0].axes):
        if k == place and len(sizes) > 1:
            for array in arrays:
                book.pin_axis(array.axes[k])
            axes.append(book.pinned((shape[k],)).axes[0])
            continue
        for array in arrays[1:]:
            axis = _equal(book, axis, array.axes[k], False, False)
        blocks = book.pinned((len(arrays),)).axes[0] if k == place else ()
        axes.append((*blocks, *axis))
    return Axes(tuple(axes))


RULES = {
    **dict.fromkeys(("add", "sub", "max", "min", "add_any"), _alike),
    **dict.fromkeys(("neg", "abs", "copy", "stop_gradient", "real"), lambda book, eqn, array: array),
    **dict.fromkeys(("gt", "lt", "ge", "le", "eq", "ne"), _compare),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "cbrt", "erf", "erf_inv"), _curved),
    **dict.fromkeys(("sin", "cos", "tan", "sinh", "cosh", "tanh", "logistic", "one_minus_square"), _curved),
    **dict.fromkeys(("floor", "ceil", "round", "is_finite", "not", "and", "or", "clamp", "erfc", "rem"), _curved),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduce),
    **dict.fromkeys(("slice", "dynamic_slice"), _slice),
    **dict.fromkeys(("reduce_window_max", "reduce_window_sum", "reduce_window_min"), _window),
    "mul": _times,
    "div": _over,
    "select_n": _select,
    "sign": lambda book, eqn, array: _to_degree_zero(book, array),
    "integer_pow": _power,
    "convert_element_type": _cast,
    "reduce_precision": _rounded,
    "square": lambda book, eqn, array: _scaled(book, array, 2.0),
    "sqrt": lambda book, eqn, array: _scaled(book, array, 0.5),
    "rsqrt": lambda book, eqn, array: _scaled(book, array, -0.5)._replace(zero=False),
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape_in_order,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "pad": _pad,
    "concatenate": _concatenate,
}
