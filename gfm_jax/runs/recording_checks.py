"""What `record` refuses, by the name of the argument and before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["DTYPES", "PARTS", "check_key", "check_recording"]

PARTS = ("weights", "mean_weights", "gradient", "state", "learning_rate", "loss")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_recording(optimizer, learning_rate, saves, keep, dtype, variety, axes):
    """Refuses what cannot be recorded; the table of rates in float32 or better, of `axes` axes at most."""
    if isinstance(optimizer, optax.GradientTransformation | optax.MultiSteps) or not callable(optimizer):
        raise ValueError(
            "optimizer: expected a function of the learning rate, such as optax.adam or "
            f"functools.partial(optax.sgd, momentum=0.9), got {type(optimizer).__name__}"
        )
    learning_rate = _check_rates(learning_rate, axes)
    _check_saves(saves, learning_rate.shape[-1])
    if isinstance(keep, str):
        raise ValueError(f"keep: expected a sequence of parts, such as ({keep!r},), got the string {keep!r}")
    if unknown := [str(part) for part in keep if part not in PARTS]:
        raise ValueError(f"keep: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if not any(_same_dtype(dtype, known) for known in DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if _same_dtype(dtype, "float64") and not jax.config.jax_enable_x64:
        raise ValueError("dtype: float64 needs jax.config.update('jax_enable_x64', True)")
    if variety is not None and not isinstance(variety, dict):
        raise ValueError(f"variety: expected a dict of scalars or arrays, got {type(variety).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variety or {}):
        if not isinstance(leaf, jax.core.Tracer) and not np.isfinite(np.asarray(leaf, float)).all():
            raise ValueError(f"variety{jax.tree_util.keystr(path)}: expected finite numbers, got {leaf}")
    return learning_rate


def _check_rates(learning_rate, axes):
    if not isinstance(learning_rate, jax.Array):  # of numbers, whatever holds them
        try:
            learning_rate = np.asarray(learning_rate)
        except ValueError as error:
            raise ValueError(
                f"learning_rate: expected a table of numbers, got {type(error).__name__}: {error}"
            ) from error
    kinds = (jnp.floating, jnp.integer)
    if learning_rate.dtype == object or not any(jnp.issubdtype(learning_rate.dtype, kind) for kind in kinds):
        raise ValueError(f"learning_rate: expected a table of real numbers, got dtype {learning_rate.dtype}")
    if learning_rate.ndim == 0:
        raise ValueError("learning_rate: expected that of every step, such as jnp.full(num_steps, 1e-3), got a scalar")
    if learning_rate.ndim > axes:
        wanted = (
            "[num_steps]: for many runs there is `record_many`" if axes == 1 else "[num_steps] or [runs, num_steps]"
        )
        raise ValueError(f"learning_rate: expected {wanted}, got shape {learning_rate.shape}")
    if not isinstance(learning_rate, jax.core.Tracer):
        known = np.asarray(learning_rate).astype(np.float64)
        bad = np.argwhere(~(np.isfinite(known) & (known >= 0)))
        if len(bad):
            at = tuple(bad[0].tolist())
            where = ", ".join(map(str, at))
            raise ValueError(f"learning_rate[{where}]: expected a finite number from 0 on, got {known[at]}")
    return jnp.asarray(learning_rate).astype(jnp.promote_types(jnp.asarray(learning_rate).dtype, jnp.float32))


def _check_saves(saves, num_steps):
    if isinstance(saves, jax.core.Tracer):
        raise ValueError(
            "saves: expected steps that are known before anything is traced, such as a tuple, got a tracer"
        )
    steps = np.asarray(saves)
    if steps.size and steps.dtype.kind not in "iu":
        raise ValueError(f"saves: expected integers, the numbers of steps, got dtype {steps.dtype}")
    steps = steps.astype(np.int64)
    if steps.ndim != 1 or len(steps) < 2 or steps[0] != 0 or (np.diff(steps) <= 0).any() or steps[-1] > num_steps:
        raise ValueError(f"saves: expected steps increasing from 0 to at most {num_steps}, got {steps.tolist()}")


def _same_dtype(dtype, name):
    try:
        return jnp.dtype(dtype) == jnp.dtype(name)
    except TypeError:
        return False


def check_key(name, key, axes):
    """One key, or an axis of keys, typed or as unsigned integers."""
    typed = jnp.issubdtype(getattr(key, "dtype", np.dtype(object)), jax.dtypes.prng_key)
    ndim = jnp.ndim(key) - (0 if typed else 1)
    if ndim != axes:
        wanted = (
            "one key: for many runs there is `record_many`"
            if axes == 0
            else "an axis of keys, such as jax.random.split(key, runs)"
        )
        raise ValueError(f"{name}: expected {wanted}, got shape {jnp.shape(key)} of {getattr(key, 'dtype', type(key))}")
