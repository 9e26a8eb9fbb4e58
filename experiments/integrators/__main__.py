"""Hold optimizers to what they are as numerical methods, and train with them at equal gradient budgets.

python -m experiments.integrators [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again: optimizers that were trained are not trained again.
"""

from experiments.command_line import run_preset
from experiments.integrators.config import PRESETS

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("integrators", PRESETS, _compare, __doc__, arguments)


def _compare(config, out, command):
    from experiments.integrators.stages import compare_integrators

    compare_integrators(config, out, command)


if __name__ == "__main__":
    main()
