"""What every experiment leaves behind: config, rows, arrays, figures, report."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gfm_jax.files import foreign, give_back, replacing, take_folder

__all__ = ["Row", "RunFolder"]


class Row(NamedTuple):
    """One number of one table."""

    table: str
    row: str
    metric: str
    value: float
    std: float | None = None
    num_seeds: int = 1


FITTED = "fitted"  # what was fitted, each in a file that `gfm_jax.load` reads
OWN = (
    "figures",
    "checkpoints",
    FITTED,
)  # what a run that was stopped at its very start leaves beside half-written files


class RunFolder:
    """A folder `out` of results: files are written beside and renamed, so that none is ever half there.

    To be made once everything that can be checked of a config is: a run that cannot start leaves no folder. Of several hosts
    only the first one writes.

    Raises:
      ValueError: where the folder holds the results of another config, saying what differs, or anything else, or where another
        process writes to it.
    """

    def __init__(self, out: str | os.PathLike, config) -> None:
        self.path = pathlib.Path(out)
        self.config, self.rows, self.start = config, [], time.perf_counter()
        self.commit = _commit()  # of the code that runs, whatever is committed meanwhile
        self._check(json.loads(json.dumps(dataclasses.asdict(config))))
        self.path.mkdir(parents=True, exist_ok=True)
        self.release = lambda: None
        if not jax.process_index():  # called when the run is finished, or else when this object or its process ends
            self.release = weakref.finalize(self, give_back, take_folder(self.path, "out"))
            # Of a run that was killed at its very end.
            shutil.rmtree(self.path / "checkpoints.partial", ignore_errors=True)
        (self.path / "figures").mkdir(exist_ok=True)
        self._write_config()

    def _check(self, config):
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"out: expected a folder or a name for one, got the file {self.path}")
        stored = self.path / "config.json"
        if not stored.exists():
            if names := foreign(self.path, OWN):
                raise ValueError(
                    f"out: expected {self.path} empty or with a run in it, got {', '.join(names[:5])} in it"
                )
            return
        try:
            before = json.loads(stored.read_text())["config"]
            names = [name for name in {**before, **config} if before.get(name) != config.get(name)]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"out: {stored} is not the config of a run ({error}); choose another folder") from error
        if names:
            differ = "; ".join(f"{name} {before.get(name)}, here {config.get(name)}" for name in names)
            raise ValueError(
                f"out: {self.path} holds the results of another config: {differ}; choose another folder or remove it"
            )

    def add(self, table: str, row: str, **metrics) -> None:
        """Adds a row: a metric is a number, or the numbers of several seeds."""
        for metric, value in metrics.items():
            seeds = np.atleast_1d(np.asarray(value, float))
            std = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
            self.rows.append(Row(table, row, metric, float(seeds.mean()), std, len(seeds)))
        self.write_json("results.json", [row._asdict() for row in self.rows])

    def table(self, name: str) -> str:
        """One table as markdown, a line a row."""
        rows = [row for row in self.rows if row.table == name]
        metrics = list(dict.fromkeys(row.metric for row in rows))
        cells = {(row.row, row.metric): row for row in rows}
        lines = ["| " + " | ".join([name, *metrics]) + " |", "|---" * (len(metrics) + 1) + "|"]
        for label in dict.fromkeys(row.row for row in rows):
            values = [_show(cells.get((label, metric))) for metric in metrics]
            lines.append("| " + " | ".join([label, *values]) + " |")
        return "\n".join(lines)

    def finish(self, title: str, command: str, arrays: dict, figures: Sequence[Callable]) -> None:
        """Prints the tables, saves the arrays, draws the figures from them, writes the report, and the time that all took
        into the config; checkpoints, which served a run that might have been stopped, are removed."""
        for table in dict.fromkeys(row.table for row in self.rows):
            print("\n" + self.table(table))
        self._save_arrays(arrays)
        if not jax.process_index():
            from experiments.drawing import draw_all  # Matplotlib: only where something is drawn

            draw_all(self.path / "figures", figures, arrays)
        self._write_config()
        tables = [self.table(name) for name in dict.fromkeys(row.table for row in self.rows)]
        figures = [f"![{path.stem}](figures/{path.name})" for path in sorted((self.path / "figures").glob("*.png"))]
        parts = [f"# {title}", f"    {command}", *tables, *figures]
        self._replace("report.md", "\n\n".join(parts) + "\n")
        checkpoints = self.path / "checkpoints"
        if (
            checkpoints.exists() and not jax.process_index()
        ):  # all at once: half of them would be taken for something else
            shutil.rmtree(checkpoints.rename(checkpoints.with_name("checkpoints.partial")))
        self.release()
        print(f"\nreport: {self.path / 'report.md'} ({time.perf_counter() - self.start:.0f} s)")

    def _save_arrays(self, arrays: dict) -> None:
        if jax.process_index():
            return
        with replacing(self.path / "arrays.npz") as file:
            np.savez_compressed(file, **arrays)

    def write_json(self, name: str, content) -> None:
        self._replace(name, json.dumps(content, indent=1))

    def _replace(self, name, text):
        if jax.process_index():
            return
        with replacing(self.path / name) as file:
            file.write(text.encode())

    def _write_config(self):
        versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "diffrax", "numpy")}
        about = {
            "config": dataclasses.asdict(self.config),
            "command": " ".join(sys.argv),
            "commit": self.commit,
            "python": platform.python_version(),
            "versions": versions,
            "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} CPU cores",
            "wall_seconds": round(time.perf_counter() - self.start, 1),
        }
        self.write_json("config.json", about)


def _show(row):
    if row is None:
        return ""
    text = f"{row.value:.4g}"
    return text if row.std is None else f"{text} ± {row.std:.2g}"


def _commit():
    here = pathlib.Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
