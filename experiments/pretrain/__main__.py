"""Fit the forecaster that ships with the library, and judge it on families of runs that its zoo does not hold.

python -m experiments.pretrain [--preset smoke|laptop|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again. Needs MNIST, Fashion-MNIST and CIFAR-10.
"""

from experiments.command_line import run_preset
from experiments.pretrain.config import PRESETS

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("pretrain", PRESETS, _pretrain, __doc__, arguments)


def _pretrain(config, out, command):
    from experiments.pretrain.stages import pretrain

    pretrain(config, out, command)


if __name__ == "__main__":
    main()
