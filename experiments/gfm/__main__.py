"""Record training runs, learn the field that moves them, forecast where unseen runs end.

python -m experiments.gfm [--preset smoke|laptop|paper] [--out DIR] [any field of the config]
"""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from experiments.gfm.config import PRESETS, Config

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line; a preset gives the defaults of every other field."""
    arguments = sys.argv[1:] if arguments is None else arguments
    Preset = Annotated[Literal[tuple(PRESETS)], tyro.conf.arg(help="the defaults of all other fields")]

    @dataclasses.dataclass(frozen=True)
    class Choice:
        preset: Preset = "laptop"

    chosen, _ = tyro.cli(Choice, args=arguments, return_unknown_args=True, add_help=False)

    def run(config: Config = PRESETS[chosen.preset], out: pathlib.Path | None = None) -> None:
        import jax

        # Two CPU devices record twice as fast as one; on an accelerator this changes nothing. Before any array is made.
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 2))
        from experiments.gfm.stages import forecast_runs

        forecast_runs(
            config,
            out or pathlib.Path("runs") / f"gfm-{config.preset}",
            "python -m experiments.gfm " + " ".join(arguments),
        )

    tyro.cli(run, args=arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))


if __name__ == "__main__":
    main()
