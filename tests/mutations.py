"""Does the suite notice plausible single mistakes? An opt-in script, not collected by pytest.

    python tests/mutations.py [WORD ...] [--whole-suite]

Writes one mistake at a time into a copy of the library, runs the tests that ought to notice it, and prints what survived; the
working tree is never touched. A mistake is found by its line, wherever that now stands, so that files may move. WORDs choose
mutations by name.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """A mistake: the text that stands once in the library, what is written in its place, and the test files to run."""

    name: str
    right: str
    wrong: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "horizon features: steps in the place of time",
        "steps, time = then.step / now.step, _ratio(then.time, now.time, 1e6)",
        "steps, time = then.step / now.step, _ratio(then.step, now.step, 1e6)",
        ("test_forecast_input",),
    ),
    Mutation(
        "log slope: against steps, not time",
        "line_weights(jnp.log(from_first_motion(seen.time, seen.seen)), inside(1 / 4))",
        "line_weights(jnp.log(from_first_motion(seen.step, seen.seen)), inside(1 / 4))",
        ("test_forecast_input",),
    ),
    Mutation(
        "motion: how far the optimizer would carry, without the rate",
        "carried = optimizer_length * rate * seen.step[last]",
        "carried = optimizer_length * seen.step[last]",
        ("test_forecast_input",),
    ),
    Mutation(
        "objective: the stop on the error of the Laplace term dropped",
        "error = jax.lax.stop_gradient(forecast - target)\n    return relative_huber",
        "error = forecast - target\n    return relative_huber",
        ("test_objectives",),
    ),
    Mutation(
        "function space: the stop on the error of the Laplace term dropped",
        "error = jax.lax.stop_gradient(moved - (target - origin) / scale)",
        "error = moved - (target - origin) / scale",
        ("test_objectives",),
    ),
    Mutation(
        "function space: the loss at the origin carries a gradient",
        "jax.lax.stop_gradient(log_of_loss(loss(origin), 1e-3))",
        "log_of_loss(loss(origin), 1e-3)",
        ("test_objectives",),
    ),
    Mutation(
        "pairs: weights of a run at rest",
        "weight = jnp.where(distance > 0, weight, 0)",
        "weight = jnp.where(distance > 0, weight, 1)",
        ("test_forecast_input",),
    ),
    Mutation(
        "flow matching: the mean of the weights apart from that of the squares",
        "return jnp.mean(weight * (velocity - dx_t) ** 2)",
        "return jnp.mean(weight) * jnp.mean((velocity - dx_t) ** 2)",
        ("test_flows",),
    ),
    Mutation(
        "Gaussian source: factor not transposed",
        "temperature * noise @ source.factor.T",
        "temperature * noise @ source.factor",
        ("test_paths",),
    ),
    Mutation(
        "Hutchinson's estimate: divided by the number of probes, not by its root",
        "x_1.dtype) / jnp.sqrt(num_probes)",
        "x_1.dtype) / num_probes",
        ("test_generators",),
    ),
    Mutation(
        "Runge-Kutta: stages at the next step's rate",
        "rate_at(state.count), updates, params, grad_fn)",
        "rate_at(state.count + 1), updates, params, grad_fn)",
        ("test_integrators",),
    ),
    Mutation(
        "step control: the exponent of the other order",
        "** (-1 / order)",
        "** (-1 / (order + 1))",
        ("test_integrators",),
    ),
    Mutation(
        "canonical form: the mask of dead units dropped",
        "ratio = jnp.log(jnp.where(alive, down, 1) / jnp.where(alive, up, 1))",
        "ratio = jnp.log(down / up)",
        ("test_encoder_arithmetic", "test_symmetry"),
    ),
    Mutation(
        "empirical flow matching: reference points ignore the source's deviation",
        "source=(0.0, std_0))",
        "source=(0.0, 1.0))",
        ("test_generators",),
    ),
    Mutation(
        "audit: novelty of held-out networks without the codec",
        '"held_out": novelty(back, task_of("held_out"))',
        '"held_out": novelty(held_out, task_of("held_out"))',
        ("test_audit",),
    ),
    Mutation(
        "joint Runge-Kutta: counters rounded, not floored",
        "jnp.floor(moved + 1e-3)",
        "jnp.round(moved)",
        ("test_integrators", "test_integrators_in_optax"),
    ),
    Mutation(
        "autoencoder: mean and scale are learned",
        'frozen=("mean", "scale")',
        "frozen=()",
        ("test_encoder_arithmetic", "test_training"),
    ),
    Mutation(
        "fits: fields are frozen wherever their name stands",
        "jax.tree_util.keystr(path[:1], simple=True) in learner.frozen",
        "any(name in jax.tree_util.keystr(path) for name in learner.frozen)",
        ("test_training",),
    ),
    Mutation(
        "fits: programs are shared whatever the choices",
        "self.key = (functions, learner.frozen, kind",
        "self.key = (learner.frozen, kind",
        ("test_training",),
    ),
    Mutation(
        "guidance of a map: the strength not in units of the largest",
        "strength / max_guidance)",
        "strength)",
        ("test_generators",),
    ),
    Mutation(
        "retrieval: conditions not brought to one scale",
        "((zoo.cond - c[None]) / zoo.scale[None]) ** 2",
        "(zoo.cond - c[None]) ** 2",
        ("test_flow_to_learn",),
    ),
)


def main() -> None:
    """Runs the mutations that were chosen, and exits with the number of survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--whole-suite", action="store_true")
    chosen = parser.parse_args()
    wanted = [m for m in MUTATIONS if not chosen.words or any(word in m.name for word in chosen.words)]
    survived = []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=_not_copied)
        for mutation in wanted:
            noticed = _noticed(copy, mutation, chosen.whole_suite)
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {mutation.name}", flush=True)
            survived += [] if noticed else [mutation.name]
    print(f"{len(wanted) - len(survived)} of {len(wanted)} noticed")
    sys.exit(len(survived))


def _not_copied(folder, names):
    """Caches anywhere; at the top recordings too, whose name the library's own folder bears."""
    left = {".git", "__pycache__"} | ({"runs"} if pathlib.Path(folder) == ROOT else set())
    return {name for name in names if name in left or name.endswith(".egg-info")}


def _noticed(copy: pathlib.Path, mutation: Mutation, whole_suite: bool) -> bool:
    places = [path for path in sorted((copy / "gfm_jax").rglob("*.py")) if mutation.right in path.read_text()]
    if len(places) != 1 or places[0].read_text().count(mutation.right) != 1:
        raise SystemExit(
            f"{mutation.name}: its line stands in {len(places)} files, not once: the list has to follow the code"
        )
    text = places[0].read_text()
    places[0].write_text(text.replace(mutation.right, mutation.wrong))
    files = [] if whole_suite else [f"tests/{name}.py" for name in mutation.tests]
    processes = [] if whole_suite else ["-n", "0"]
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *processes, *files]
        found = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True
        )
    finally:
        places[0].write_text(text)
    if found.returncode not in (0, 1):
        raise SystemExit(f"{mutation.name}: the tests did not run\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    return found.returncode == 1


if __name__ == "__main__":
    main()
