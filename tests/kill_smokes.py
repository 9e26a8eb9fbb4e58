"""Kills the smoke run of every experiment at many moments, resumes it, and compares what it leaves with a straight run.

python tests/kill_smokes.py [EXPERIMENT ...] [--kills 10] [--keep DIR]

Not collected by pytest: two straight runs, and a run and a half for every kill. Numbers and arrays must be equal, but for
those that are times, and there must be the same figures. A table says what was found; the exit status is 1 where something
differed.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

NAMES = ("flow_maps", "closed_form", "integrators", "gfm", "flown", "speed")
TIMES = ("seconds", "seconds_per_step", "seconds_per_epoch", "over_M_1", "wall_seconds")  # metrics that a clock tells
ALL_TIMED = ("speed",)  # experiments of which every number is a time


def run(name: str, out: pathlib.Path, kill_after: float | None = None) -> tuple[int, float, str]:
    """Exit status, seconds and the end of what was printed; killed after some seconds where asked for."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": os.path.join(tempfile.gettempdir(), "gfm_jax_smoke"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", f"experiments.{name}", "--preset", "smoke", "--out", str(out)]
    begin = time.monotonic()
    with open(f"{out}.log", "ab") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    return process.returncode, time.monotonic() - begin, pathlib.Path(f"{out}.log").read_text(errors="replace")[-2000:]


def differences(name: str, straight: pathlib.Path, resumed: pathlib.Path) -> list[str]:
    """What the two folders differ in, apart from times."""
    found = []
    tables = [_cells(name, folder) for folder in (straight, resumed)]
    found += [f"results: {cell}" for cell in tables[0].keys() ^ tables[1].keys()]
    same = lambda a, b: np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True)
    found += [
        f"results: {cell} {tables[0][cell]} {tables[1][cell]}"
        for cell in tables[0].keys() & tables[1].keys()
        if not same(tables[0][cell], tables[1][cell])
    ]
    with np.load(straight / "arrays.npz") as first, np.load(resumed / "arrays.npz") as second:
        found += [f"arrays: {array}" for array in {*first.files} ^ {*second.files}]
        for array in {*first.files} & {*second.files}:
            a, b = first[array], second[array]
            timed = name in ALL_TIMED or any(part in array.split("/")[-1] for part in TIMES)
            if not timed and not (a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")):
                found.append(f"arrays: {array}")
    figures = [sorted(path.name for path in (folder / "figures").iterdir()) for folder in (straight, resumed)]
    if figures[0] != figures[1]:
        found.append(f"figures: {figures[0]} {figures[1]}")
    if extra := {path.name for path in resumed.iterdir()} ^ {path.name for path in straight.iterdir()}:
        found.append(f"files: {sorted(extra)}")
    return found


def _cells(name, folder):
    rows = json.loads((folder / "results.json").read_text())
    timed = lambda row: row["metric"] in TIMES or name in ALL_TIMED
    return {
        (row["table"], row["row"], row["metric"]): [row["value"], row["std"] or 0, row["num_seeds"]]
        for row in rows
        if not timed(row)
    }


def main() -> int:
    """Runs, kills, resumes, compares, and prints a line for every kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, choices=[[], *NAMES], metavar="EXPERIMENT")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--keep", type=pathlib.Path, default=None, help="where to leave the folders")
    chosen = parser.parse_args()
    place = chosen.keep or pathlib.Path(tempfile.mkdtemp())
    place.mkdir(parents=True, exist_ok=True)
    wrong = 0
    print("| experiment | killed after | of | found |\n|---|---|---|---|", flush=True)
    for name in chosen.names or NAMES:
        straight = place / f"{name}-straight"
        status, seconds, told = run(name, straight)
        if status:
            print(f"| {name} | not | | failed: {told} |", flush=True)
            wrong += 1
            continue
        again = place / f"{name}-again"  # its programs are in the cache, as those of the runs that are killed
        status, seconds, told = run(name, again)
        found = differences(name, straight, again) if not status else [f"failed: {told}"]
        wrong += bool(found)
        print(f"| {name} | not | {seconds:.1f} s | {'; '.join(found) or 'equal'} |", flush=True)
        for k in range(chosen.kills):
            out, moment = place / f"{name}-{k}", seconds * (k + 0.5) / chosen.kills
            killed, *_ = run(name, out, moment)
            status, _, told = run(name, out)
            found = differences(name, straight, out) if not status else [f"failed: {told}"]
            wrong += bool(found)
            how = f"{moment:.1f} s" if killed == -signal.SIGKILL else "finished before"
            print(f"| {name} | {how} | {seconds:.1f} s | {'; '.join(found) or 'equal'} |", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
