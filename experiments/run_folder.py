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
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

__all__ = ["Row", "RunFolder"]


class Row(NamedTuple):
    """One number of one table."""

    table: str
    row: str
    metric: str
    value: float
    std: float | None = None
    num_seeds: int = 1


class RunFolder:
    """A folder `out` of results: files are written beside and renamed, so that none is ever half there.

    Of several hosts only the first one writes.
    """

    def __init__(self, out: str | os.PathLike, config) -> None:
        self.path = pathlib.Path(out)
        (self.path / "figures").mkdir(parents=True, exist_ok=True)
        self.config, self.rows, self.start = config, [], time.perf_counter()
        self.commit = _commit()  # of the code that runs, whatever is committed meanwhile
        stored = self.path / "config.json"
        mine = json.loads(json.dumps(dataclasses.asdict(config)))
        if stored.exists() and json.loads(stored.read_text())["config"] != mine:
            raise ValueError(
                f"out: {self.path} holds the results of another config; choose another folder or remove it"
            )
        self._write_config()

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
        if not jax.process_index():
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        print(f"\nreport: {self.path / 'report.md'} ({time.perf_counter() - self.start:.0f} s)")

    def _save_arrays(self, arrays: dict) -> None:
        if jax.process_index():
            return
        temporary = self.path / "arrays.partial.npz"
        np.savez_compressed(temporary, **arrays)
        temporary.replace(self.path / "arrays.npz")

    def write_json(self, name: str, content) -> None:
        self._replace(name, json.dumps(content, indent=1))

    def _replace(self, name, text):
        if jax.process_index():
            return
        temporary = self.path / f"{name}.partial"
        temporary.write_text(text)
        temporary.replace(self.path / name)

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
