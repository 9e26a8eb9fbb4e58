"""What `record` refuses, by the name of the argument and before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfm_jax.checks import is_traced

__all__ = ["DTYPES", "PARTS", "check_recording", "check_runs", "check_saves", "x64"]

PARTS = ("weights", "mean_weights", "gradient", "state", "learning_rate", "loss")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def check_recording(optimizer, learning_rates, keep, dtype, variety):
    """Refuses what cannot be recorded; returns the table of rates in float32 or better."""
    if isinstance(optimizer, optax.GradientTransformation | optax.MultiSteps) or not callable(optimizer):
        raise ValueError(
            "optimizer: expected a function of the learning rate, such as optax.adam or "
            f"functools.partial(optax.sgd, momentum=0.9), got {type(optimizer).__name__}"
        )
    learning_rates = _check_rates(learning_rates)
    if isinstance(keep, str):
        raise ValueError(f"keep: expected a sequence of parts, such as ({keep!r},), got the string {keep!r}")
    if unknown := [str(part) for part in keep if part not in PARTS]:
        raise ValueError(f"keep: expected parts among {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if not any(_same_dtype(dtype, known) for known in DTYPES):
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if _same_dtype(dtype, "float64") and not x64():
        raise ValueError("dtype: float64 needs jax.config.update('jax_enable_x64', True)")
    if variety is not None and not isinstance(variety, dict):
        raise ValueError(f"variety: expected a dict of scalars or arrays, got {type(variety).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variety or {}):
        if not is_traced(leaf) and not np.isfinite(np.asarray(leaf, float)).all():
            raise ValueError(f"variety{jax.tree_util.keystr(path)}: expected finite numbers, got {leaf}")
    return learning_rates


def _check_rates(learning_rates):
    if not isinstance(learning_rates, jax.Array):  # of numbers, whatever holds them
        try:
            learning_rates = np.asarray(learning_rates)
        except ValueError as error:
            raise ValueError(
                f"learning_rates: expected a table of numbers, got {type(error).__name__}: {error}"
            ) from error
    kinds = (jnp.floating, jnp.integer)
    if learning_rates.dtype == object or not any(jnp.issubdtype(learning_rates.dtype, kind) for kind in kinds):
        raise ValueError(f"learning_rates: expected a table of real numbers, got dtype {learning_rates.dtype}")
    if learning_rates.ndim == 0:
        raise ValueError("learning_rates: expected that of every step, such as jnp.full(num_steps, 1e-3), got a scalar")
    if learning_rates.ndim > 2:
        raise ValueError(f"learning_rates: expected [num_steps] or [runs, num_steps], got shape {learning_rates.shape}")
    if not is_traced(learning_rates):
        known = np.asarray(learning_rates).astype(np.float64)
        bad = np.argwhere(~(np.isfinite(known) & (known >= 0)))
        if len(bad):
            at = tuple(bad[0].tolist())
            where = ", ".join(map(str, at))
            raise ValueError(f"learning_rates[{where}]: expected a finite number from 0 on, got {known[at]}")
    return jnp.asarray(learning_rates).astype(jnp.promote_types(jnp.asarray(learning_rates).dtype, jnp.float32))


def check_saves(saves, num_steps) -> tuple[int, ...]:
    """Refuses steps that are not in order; returns them as numbers of Python."""
    if is_traced(saves):
        raise ValueError(
            "saves: expected steps that are known before anything is traced, such as a tuple, got a tracer"
        )
    steps = np.asarray(saves)
    if steps.size and steps.dtype.kind not in "iu":
        raise ValueError(f"saves: expected integers, the numbers of steps, got dtype {steps.dtype}")
    steps = steps.astype(np.int64)
    if steps.ndim != 1 or len(steps) < 2 or steps[0] != 0 or (np.diff(steps) <= 0).any() or steps[-1] > num_steps:
        raise ValueError(f"saves: expected steps increasing from 0 to at most {num_steps}, got {steps.tolist()}")
    return tuple(steps.tolist())


def x64() -> bool:
    """Whether JAX computes in double precision where it is asked to."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  options are made at run time


def _same_dtype(dtype, name):
    try:
        return jnp.dtype(dtype) == jnp.dtype(name)
    except TypeError:
        return False


def check_runs(key, learning_rates, variety, chunk, mesh):
    """Refuses numbers of runs that differ; returns keys and rates of one run, or of every run of a batch."""
    typed = jnp.issubdtype(getattr(key, "dtype", np.dtype(object)), jax.dtypes.prng_key)
    axes = jnp.ndim(key) - (0 if typed else 1)  # or as unsigned integers
    if axes not in (0, 1):
        found = f"shape {jnp.shape(key)} of {getattr(key, 'dtype', type(key))}"
        raise ValueError(f"key: expected one key, or an axis of keys, such as jax.random.split(key, runs), got {found}")
    if chunk is not None and not chunk >= 1:
        raise ValueError(f"chunk: expected a number of runs from 1 on, or None for all, got {chunk}")
    if axes == 0 and learning_rates.ndim == 1:
        if mesh is not None:
            raise ValueError("mesh: expected several runs to split over its devices, got one")
        return key, learning_rates
    num_runs = len(key) if axes else len(learning_rates)
    if num_runs == 0:
        raise ValueError("key: expected one for each run, got none")
    key = key if axes else jax.random.split(key, num_runs)
    if learning_rates.ndim == 1:
        learning_rates = jnp.broadcast_to(learning_rates, (num_runs, *learning_rates.shape))
    leaves = jax.tree_util.tree_leaves_with_path(variety or {})
    named = [(f"variety{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]
    for name, leaf in [("learning_rates", learning_rates), *named]:
        if jnp.shape(leaf)[:1] != (num_runs,):
            raise ValueError(f"{name}: expected a leading axis of {num_runs} runs, one a key, got {jnp.shape(leaf)}")
    if mesh is not None and num_runs % mesh.devices.size:
        raise ValueError(f"mesh: its {mesh.devices.size} devices must divide the number of runs, {num_runs}")
    return key, learning_rates
