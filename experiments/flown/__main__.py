"""Generate networks for a task from a few of its examples, and audit that they are new.

python -m experiments.flown [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again: encoders and flows that were fitted are not fitted again.
"""

from experiments.command_line import run_preset
from experiments.flown.config import PRESETS

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("flown", PRESETS, _generate, __doc__, arguments)


def _generate(config, out, command):
    from experiments.flown.stages import generate_networks

    generate_networks(config, out, command)


if __name__ == "__main__":
    main()
