"""How fast runs are recorded and forecast and flows learned, beside what the machine could do and what others do, on one core.

python -m experiments.speed [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

The rows of PyTorch and of its packages need them (`pip install -e ".[peers]"`); what is not installed is left out, and the
screen says so.
"""

import importlib.util
import pathlib

import numpy as np
from tqdm.auto import tqdm

from experiments.command_line import run_preset
from experiments.run_folder import RunFolder
from experiments.speed.config import PRESETS, check
from experiments.speed.contest import time_contestant
from experiments.speed.figures import FIGURES
from experiments.speed.flow_tables import time_flows

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and times everything."""
    run_preset("speed", PRESETS, time_everything, __doc__, arguments)


def time_everything(config, out: pathlib.Path, command: str) -> None:
    """Every table, one after the other; contestants of one table take turns."""
    check(config)
    folder = RunFolder(out, config)
    size = {name: getattr(config, name) for name in ("num_runs", "num_steps", "save_every", "chunk")}
    arrays = _record(folder, config, size) | _scale(folder, config, size)
    _stream(folder, config, size)
    _forecast(folder, config)
    time_flows(folder, config)
    folder.finish("How fast runs are recorded and forecast, and flows learned", command, arrays, FIGURES)


def _record(folder, config, size):
    rows = {"gfm_jax": size, "matrix_products": size}
    if importlib.util.find_spec("torch"):
        rows |= {"torch_func": size, "torch_loop": size | {"num_runs": config.loop_runs}}
    else:
        print("PyTorch is not installed: its rows are left out")
    rates = {row: [] for row in rows}
    for row in tqdm([*rows] * config.rounds, desc="record"):
        found = time_contestant(config, row, rows[row])
        rates[row].append(found["net_steps"] / found["seconds"])
    ours = np.array(rates["gfm_jax"])
    for row, rate in rates.items():
        folder.add("record", row, net_steps_per_second=rate, gfm_jax_is_faster_by=ours / np.array(rate))
    return {f"record/{row}": np.array(rate) for row, rate in rates.items()}


def _scale(folder, config, size):
    arrays = {}
    for name, values in (("num_runs", config.scaling_runs), ("num_steps", config.scaling_steps)):
        seconds = np.full((config.rounds, len(values)), np.inf)
        for k, i in tqdm(list(np.ndindex(seconds.shape)), desc=f"seconds by {name}"):
            seconds[k, i] = time_contestant(config, "gfm_jax", size | {name: values[i]})["seconds"]
        each = seconds.min(0) / np.array(values)
        for value, cost in zip(values, each, strict=True):
            folder.add(f"linear/{name}", str(value), seconds=cost * value, relative_cost=cost / each.mean())
        arrays |= {f"linear/{name}": np.array(values), f"linear/{name}/seconds": seconds.min(0)}
    return arrays


def _stream(folder, config, size):
    for num_runs in tqdm(config.streaming_runs, desc="stream to disk"):
        folder.add(
            "streaming", f"{num_runs} runs", **time_contestant(config, "streaming", size | {"num_runs": num_runs})
        )


def _forecast(folder, config):
    for head in config.heads:
        found = time_contestant(
            config, "forecast", {"width": config.width, "num_saves": config.num_saves, "head": head}
        )
        folder.add("forecast", head, **found, steps_per_forecast=found["seconds"] / found["step_seconds"])


if __name__ == "__main__":
    main()
