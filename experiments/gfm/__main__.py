"""Record training runs, learn the field that moves them, forecast where unseen runs end.

python -m experiments.gfm [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again: fits continue from their checkpoints.
"""

import os

from experiments.command_line import run_preset
from experiments.gfm.config import PRESETS

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("gfm", PRESETS, _forecast_runs, __doc__, arguments)


def _forecast_runs(config, out, command):
    import jax

    if config.distributed:
        jax.distributed.initialize()
    # Two CPU devices record twice as fast as one; on an accelerator this changes nothing. Before any array is made.
    jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 2))
    from experiments.gfm.stages import forecast_runs

    forecast_runs(config, out, command)


if __name__ == "__main__":
    main()
