"""The command line that all experiments share."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import tyro

__all__ = ["run_preset"]


def run_preset(
    name: str, presets: Mapping, experiment: Callable, about: str | None, arguments: list[str] | None = None
) -> None:
    """Reads `--preset`, `--out` and any field of the config, and calls `experiment(config, out, command)`.

    A preset gives the defaults of every other field; results go to `runs/NAME-PRESET` unless `--out` says otherwise.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    Preset = Annotated[Literal[tuple(presets)], tyro.conf.arg(help="the defaults of all other fields")]

    @dataclasses.dataclass(frozen=True)
    class Choice:
        preset: Preset = "laptop"

    chosen, _ = tyro.cli(Choice, args=arguments, return_unknown_args=True, add_help=False)
    preset = presets[chosen.preset]

    def run(config: type(preset) = preset, out: pathlib.Path | None = None) -> None:
        if config.preset == "smoke":
            _compile_quickly()
        folder = out or pathlib.Path("runs") / f"{name}-{config.preset}"
        experiment(config, folder, " ".join([f"python -m experiments.{name}", *arguments]))

    tyro.cli(run, args=arguments, description=about, config=(tyro.conf.OmitArgPrefixes,))


def _compile_quickly():
    import jax

    # XLA's older emitters take two thirds of the time to compile, and half as much again to run: right for what runs once.
    # Before a backend starts, and only in versions known to take the flag: an unknown one ends the process.
    if jax.__version_info__ < (0, 11):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
