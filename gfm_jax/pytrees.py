"""Weights as pytrees and as flat vectors."""

import itertools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from gfm_jax.base import Layout
from gfm_jax.first_use import first_uses
from gfm_jax.layers import layer_of, natural_order, output_axis, parts_of
from gfm_jax.parameters import check_parameters, leaf_names

__all__ = [
    "auto_mesh",
    "check_parameters",
    "depths",
    "layout_from_dict",
    "layout_of",
    "layout_to_dict",
    "map_rows",
    "on_auto_mesh",
    "output_axes",
    "place",
    "ravel",
    "segment_ids",
    "unravel",
]


def layout_of(weights: PyTree, apply: Callable | None = None, *inputs: PyTree, convention: str | None = None) -> Layout:
    """The layout of a pytree of weights once it is flat.

    With the network itself the layout also holds the order in which the network uses its layers; without it that order is
    read from the names (`depths`). One network has equal names as a dict, as an NNX state and as msgpack or orbax restore it.

    Args:
      weights: a pytree of arrays (or of their shapes, as `jax.eval_shape` returns it), parameters alone.
      apply: the network, `(weights, *inputs) -> outputs`.
      *inputs: examples for it, or their shapes.
      convention: "flax" for kernels [in, out] and HWIO, "torch" for [out, in] and OIHW, None to go by the names.

    Returns:
      Names such as "hidden_0/kernel" and shapes, in the order of `ravel`.

    Raises:
      ValueError: for what `check_parameters` refuses, an unknown convention, or inputs without a network.

    >>> weights = {"Dense_0": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}
    >>> layout = layout_of(weights)
    >>> layout.names, layout.shapes
    (('Dense_0/bias', 'Dense_0/kernel'), ((3,), (2, 3)))
    """
    names = check_parameters(weights)
    if convention not in (None, "flax", "torch"):
        raise ValueError(f'convention: expected "flax", "torch" or None, got {convention!r}')
    if apply is None and inputs:
        raise ValueError("apply: expected a network beside the inputs, got None")
    shapes = tuple(tuple(np.shape(leaf)) for leaf in jax.tree.leaves(weights))
    layers = None if apply is None else _in_order_of_use(names, first_uses(apply, weights, *inputs))
    return Layout(names, shapes, convention, layers)


def _in_order_of_use(names, uses):
    """The number of each tensor's layer, which is used where the first of its tensors is."""
    first: dict[str, float] = {}
    for name, use in zip(names, uses, strict=True):
        first[layer_of(name)] = min(use, first.get(layer_of(name), math.inf))
    order = sorted(first, key=first.__getitem__)
    return tuple(order.index(layer_of(name)) for name in names)


def depths(layout: Layout) -> tuple[float, ...]:
    """How deep the layer of each tensor lies, from 0 for the network's first to 1 for its last.

    Layers are in the order in which the network uses them, where the layout knows it (`layout_of(weights, apply, inputs)`),
    else in the natural order of their names (`layers.natural_order`).

    Args:
      layout: of the weights.

    Returns:
      For each tensor its depth, in [0, 1]; 0 where there is one layer.

    >>> depths(layout_of({"head": jnp.zeros(2), "Dense_10": jnp.zeros(2), "Dense_2": jnp.zeros(2)}))  # Dense_10, Dense_2, head
    (0.5, 0.0, 1.0)
    """
    layers = layout.layers
    if layers is None:
        order = {layer: k for k, layer in enumerate(natural_order([layer_of(name) for name in layout.names]))}
        layers = tuple(order[layer_of(name)] for name in layout.names)
    return tuple(layer / max(*layers, 1) for layer in layers)


def output_axes(layout: Layout) -> tuple[int, ...]:
    """The axis of each tensor that runs over the output units of its layer: 0 or -1, and -1 for vectors.

    Where the layout has no convention, the bias of a matrix tells: it has as many entries as the layer has outputs. Where that
    does not tell either, the name does (`layers.output_axis`).

    Args:
      layout: of the weights.

    Returns:
      For each tensor 0 or -1.

    >>> output_axes(Layout(("fc/w", "fc/b"), ((4, 3), (4,))))  # as many biases as rows
    (0, -1)
    """
    biases = {
        layer_of(name): shape[0]
        for name, shape in zip(layout.names, layout.shapes, strict=True)
        if len(shape) == 1 and re.fullmatch(r"(.*[/.])?(b|bias)\d*", name)
    }

    def axis(name, shape):
        ends = (shape[0], shape[-1]) if len(shape) > 1 else (None, None)
        is_end = [end == biases.get(layer_of(name)) for end in ends]
        if layout.convention is None and len(shape) > 1 and sum(is_end) == 1:
            return 0 if is_end[0] else -1
        return output_axis(name, shape, layout.convention)

    return tuple(axis(name, shape) for name, shape in zip(layout.names, layout.shapes, strict=True))


def layout_to_dict(layout: Layout) -> dict:
    """A layout as lists, strings and numbers, which JSON and msgpack can hold.

    >>> layout_to_dict(layout_of({"w": jnp.zeros((2, 3))}))
    {'names': ['w'], 'shapes': [[2, 3]], 'convention': None, 'layers': None}
    """
    layers = None if layout.layers is None else list(layout.layers)
    shapes = [list(shape) for shape in layout.shapes]
    return {"names": list(layout.names), "shapes": shapes, "convention": layout.convention, "layers": layers}


def layout_from_dict(state: dict) -> Layout:
    """The layout that `layout_to_dict` wrote; what a dict of an older version does not have is None.

    >>> layout_from_dict({"names": ["w"], "shapes": [[2, 3]]}).sizes
    (6,)
    """
    layers = state.get("layers")
    shapes = tuple(tuple(int(size) for size in shape) for shape in state["shapes"])
    return Layout(tuple(state["names"]), shapes, state.get("convention"), None if layers is None else tuple(layers))


def ravel(weights: PyTree) -> Float[Array, " dim"]:
    """All leaves of a pytree of weights as one flat vector.

    >>> ravel({"kernel": jnp.ones((1, 2)), "bias": jnp.zeros(1)}).tolist()  # in the order of the names
    [0.0, 1.0, 1.0]
    """
    return ravel_pytree(weights)[0]


def unravel(like: PyTree, vector: Float[Array | np.ndarray, "*runs dim"], layout: Layout | None = None) -> PyTree:
    """A flat vector, or a batch of them, as a pytree of the structure, shapes and dtypes of `like`.

    Args:
      like: the weights of one network.
      vector: [dim], or [runs, dim] for leaves that are led by [runs].
      layout: of the vector, where it may have another order than `like`, as that of checkpoints: tensors are then found by
        their names.

    Raises:
      ValueError: where the sizes differ, or the layout has other names or shapes.

    >>> weights = unravel({"kernel": jnp.ones((1, 2)), "bias": jnp.zeros(1)}, jnp.arange(3.0))
    >>> jax.tree.map(lambda leaf: leaf.tolist(), weights)
    {'bias': [0.0], 'kernel': [[1.0, 2.0]]}
    """
    leaves, treedef = jax.tree.flatten(like)
    shapes = [np.shape(leaf) for leaf in leaves]
    order = range(len(leaves)) if layout is None else _places(like, shapes, layout)
    sizes = [int(np.prod(shape)) for shape in shapes] if layout is None else layout.sizes
    if vector.shape[-1:] != (sum(sizes),):
        raise ValueError(f"vector: expected shape ({sum(sizes)},) to fill the weights, got {vector.shape}")
    stops = list(itertools.accumulate(sizes))
    pieces = [vector[..., stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]
    return treedef.unflatten(
        pieces[place].reshape(*vector.shape[:-1], *shape).astype(jnp.result_type(leaf))
        for place, shape, leaf in zip(order, shapes, leaves, strict=True)
    )


def _places(like, shapes, layout):
    """For each leaf the index of its tensor in the layout, by name, whatever the separators of names are."""
    known = {
        parts_of(name): (k, shape) for k, (name, shape) in enumerate(zip(layout.names, layout.shapes, strict=True))
    }
    places = []
    for name, shape in zip(leaf_names(like), shapes, strict=True):
        place, own = known.get(parts_of(name), (None, None))
        if place is None:
            raise ValueError(
                f"layout: expected the names of `like`, got no {name!r} among {', '.join(layout.names[:4])}"
            )
        if own != shape:
            raise ValueError(f"layout: expected {name!r} of shape {shape}, as `like` has it, got {own}")
        places.append(place)
    if len(known) != len(shapes):
        raise ValueError(f"layout: expected the {len(shapes)} tensors of `like`, got {len(known)}")
    return places


def segment_ids(layout: Layout) -> np.ndarray:
    """For each coordinate of the flat vector, the index of its tensor: int32 [dim].

    >>> segment_ids(layout_of({"bias": jnp.zeros(1), "kernel": jnp.zeros((1, 2))})).tolist()
    [0, 1, 1]
    """
    return np.repeat(np.arange(len(layout.sizes), dtype=np.int32), layout.sizes)


def place(tree: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """`jax.device_put`, also where the devices of a sharding belong to several hosts, each of which holds the whole tree.

    Args:
      tree: of arrays, also of random keys; on several hosts the same on each of them.
      sharding: of every array.

    >>> mesh = jax.make_mesh((1,), ("runs",))
    >>> runs = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs"))
    >>> place({"w": jnp.zeros((4, 2))}, runs)["w"].sharding.spec[0]
    'runs'
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def map_rows(function: Callable, rows: PyTree, batch_size: int) -> PyTree:
    """`jax.lax.map` over the leading axis in full batches: the last one is filled up with the first rows.

    A batch of another size would be compiled apart, in the time of all the others.

    Args:
      function: of one row.
      rows: arrays with the same leading axis.
      batch_size: how many rows are worked out side by side, at least 1.

    Returns:
      What the function returns of every row, led by the same axis.

    Raises:
      ValueError: for no row, leaves of different numbers of rows, or a batch size below 1.

    >>> map_rows(jnp.sum, jnp.arange(6.0).reshape(3, 2), batch_size=2).tolist()
    [1.0, 5.0, 9.0]
    """
    leading = sorted({leaf.shape[:1] for leaf in map(jnp.asarray, jax.tree.leaves(rows))})
    if len(leading) != 1 or leading[0] in ((), (0,)):
        raise ValueError(f"rows: expected at least one row, as many in every array, got leading axes {leading}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    num = leading[0][0]
    size = min(batch_size, num)
    index = jnp.arange(-(-num // size) * size) % num
    row = lambda i: jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], rows)
    found = jax.lax.map(lambda i: function(row(i)), index, batch_size=size)
    return jax.tree.map(lambda leaf: leaf[:num], found)


def auto_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same devices with axes over which the compiler divides work by itself.

    `jax.make_mesh` makes explicit axes from jax 0.9 on, under which operations have to say how their results are divided.

    Args:
      mesh: of axes of any type.

    >>> mesh = jax.make_mesh((1,), ("runs",), axis_types=(jax.sharding.AxisType.Explicit,))
    >>> auto_mesh(mesh).axis_types[0].name, auto_mesh(mesh).axis_names
    ('Auto', ('runs',))
    """
    auto = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
    return mesh if tuple(mesh.axis_types) == auto else jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=auto)


def on_auto_mesh(tree: PyTree) -> PyTree:
    """Arrays that live on a mesh of explicit axes, divided in the same way over the `auto_mesh` of it; others as they are.

    >>> mesh = jax.make_mesh((1,), ("runs",), axis_types=(jax.sharding.AxisType.Explicit,))
    >>> array = jax.device_put(jnp.zeros(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("runs")))
    >>> moved = on_auto_mesh(array).sharding
    >>> moved.mesh.axis_types[0].name, moved.spec[0]
    ('Auto', 'runs')
    """

    def move(leaf):
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding) or not isinstance(sharding.mesh, jax.sharding.Mesh):
            return leaf
        mesh = auto_mesh(sharding.mesh)
        return leaf if mesh == sharding.mesh else jax.device_put(leaf, jax.sharding.NamedSharding(mesh, sharding.spec))

    return jax.tree.map(move, tree)
