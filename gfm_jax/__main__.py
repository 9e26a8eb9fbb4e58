"""The command line: `python -m gfm_jax forecast FOLDER --until STEP`."""

import argparse
import pathlib
import sys
import warnings

import numpy as np

import gfm_jax as gfm

__all__ = ["main", "parser"]

SIMPLE = ("dmd", "exponential", "lawa", "lawa_half_log", "linear", "log_time", "persistence", "rank1", "sqrt_time")


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    main = argparse.ArgumentParser(
        "python -m gfm_jax", description=gfm.__doc__.splitlines()[0] if gfm.__doc__ else None
    )
    commands = main.add_subparsers(dest="command", required=True)
    forecast = commands.add_parser("forecast", help="where a run will end, from its checkpoints")
    add = forecast.add_argument
    add("folder", nargs="+", help="a folder of checkpoints, or the checkpoints, each a file or a folder")
    add("--until", type=int, required=True, help="the step to forecast, beyond the last checkpoint")
    add("--steps", type=int, nargs="+", help="of each checkpoint, where their names do not tell")
    add("--learning-rate", type=float, help="of the run; without it the clock is its number of steps")
    known = ", ".join(SIMPLE)
    add("--method", default="general", help=f"general (the pretrained one), a file of gfm_jax.save, or one of {known}")
    add("--part", help='path of the parameters in a checkpoint, such as "ema/params"')
    add("--out", type=pathlib.Path, help="a checkpoint to write, of the format that is read")
    add("--figure", type=pathlib.Path, help="an image to write: layers over time, and the forecast")
    return main


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; a mistake is one line, not a traceback."""
    chosen = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
        try:
            _forecast(chosen)
        except (ValueError, ImportError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def _forecast(chosen):
    _check(chosen)
    forecaster, params = _method(chosen.method)
    files = chosen.folder[0] if len(chosen.folder) == 1 else chosen.folder
    run = gfm.read_checkpoints(files, chosen.steps, chosen.learning_rate, part=chosen.part)
    last, rate = int(run.step[-1]), chosen.learning_rate
    assert run.layout is not None
    if chosen.until <= last:
        raise ValueError(f"--until: expected a step beyond the last checkpoint, {last}, got {chosen.until}")
    forecast = gfm.forecast(forecaster, params, run, until=chosen.until)
    drift = gfm.forecasting.drift_by_layer(run, forecast)
    clock = "its clock is the number of steps" if rate is None else f"at a learning rate of {rate:g}"
    print(f"{len(run.step)} checkpoints, steps {int(run.step[0])} to {last}, {run.layout.dim:,} weights, {clock}")
    print(f"forecast of step {chosen.until} by {chosen.method}\n")
    print(table(drift))
    if chosen.out is not None:
        like = gfm.runs.last_checkpoint(files, chosen.steps, part=chosen.part)
        gfm.runs.write_checkpoint(chosen.out, forecast.weights, run.layout, like, part=chosen.part)
        print(f"\nwrote {chosen.out}, else as {like}")
    if chosen.figure is not None:
        draw(chosen.figure, run, drift, chosen.until)
        print(f"\nwrote {chosen.figure}")


def _check(chosen):
    """What can be told before anything is read."""
    for name, path in (("--out", chosen.out), ("--figure", chosen.figure)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{name}: expected a path in a folder that exists, got {path}")
    if chosen.out is not None and chosen.out.exists():
        raise ValueError(f"--out: expected a name that is free, got {chosen.out}, which exists")
    if chosen.figure is not None:
        import matplotlib  # noqa: F401  its absence is told before the work

    if chosen.until < 1:
        raise ValueError(f"--until: expected a step beyond the last checkpoint, got {chosen.until}")


def _method(name):
    if name in SIMPLE:
        return getattr(gfm.forecasting.baselines, name)(), ()
    if name == "general":
        return gfm.pretrained(name)
    if not pathlib.Path(name).exists():
        known = ", ".join(("general", *SIMPLE))
        raise ValueError(f"--method: expected a file of gfm_jax.save, or one of {known}, got {name}")
    forecaster, params = gfm.load(name)
    if not isinstance(forecaster, gfm.Forecaster):
        raise ValueError(f"--method: expected a forecaster in {name}, got a {type(forecaster).__name__}")
    return forecaster, params


def table(drift: gfm.forecasting.Drift) -> str:
    """A row for each layer: how far it has come and will go, relative to its size, and how much of the way lies behind it."""
    norm = lambda array: float(np.sqrt(np.sum(np.square(array))))
    columns = [drift.num_weights, drift.size, drift.path[:, -1], drift.ahead]
    columns += [] if drift.half_width is None else [drift.half_width]
    whole = [columns[0].sum(), *map(norm, columns[1:])]
    rows = [("layer", "weights", "moved so far", "still to go", "of the way done", "+- (interval)")[: len(columns) + 1]]
    rows += [_row(*row) for row in zip(drift.layers, *columns, strict=True)]
    rows.append(_row("all", *whole))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda row: [row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))]
    return "\n".join("  ".join(pad(row)) for row in rows)


def _row(name, num, size, moved, ahead, *width):
    """Distances relative to the size of the weights, in per cent, and the fraction of the way that lies behind."""
    share = lambda part, whole: f"{100 * part / whole:.3g} %" if whole > 0 else "-"
    parts = [
        share(moved, size),
        share(ahead, size),
        share(moved, moved + ahead),
        *(share(part, size) for part in width),
    ]
    return (name or "weights", f"{num:,}", *parts)


def draw(path: pathlib.Path, run: gfm.Trajectory, drift: gfm.forecasting.Drift, until: int) -> None:
    """Layers over time: how far each is from its first observed weights, and how far it is forecast to go from the last."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = np.argsort(-drift.path[:, -1] / np.maximum(drift.size, 1e-30))[:8]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for k, row in enumerate(sorted(most)):
        size, steps = max(drift.size[row], 1e-30), np.asarray(run.step)
        seen, then = drift.path[row] / size, drift.end[row] / size
        axis.plot(steps, seen, color=f"C{k}", label=drift.layers[row] or "weights")
        axis.plot([steps[-1], until], [seen[-1], then], ":o", color=f"C{k}", markersize=3)
    axis.axvline(int(run.step[-1]), color="0.7", linewidth=0.8)
    axis.set(
        xlabel="step",
        ylabel="distance from the start, relative to the weights",
        title="observed (solid), forecast (dotted)",
    )
    axis.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
