"""Set what flow matching learns beside the closed form of what it is asked for.

python -m experiments.closed_form [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again: fits continue from their checkpoints.
"""

from experiments.closed_form.config import PRESETS
from experiments.command_line import run_preset

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("closed_form", PRESETS, _compare, __doc__, arguments)


def _compare(config, out, command):
    from experiments.closed_form.stages import compare_with_closed_form

    compare_with_closed_form(config, out, command)


if __name__ == "__main__":
    main()
