"""Learn flow maps on a checkerboard by self-distillation, by every method, and see what few jumps cost.

python -m experiments.flow_maps [--preset smoke|laptop|gpu_short|paper] [--out DIR] [any field of the config]

A run that was stopped goes on when the same command is given again: fits continue from their checkpoints.
"""

import os

from experiments.command_line import run_preset
from experiments.flow_maps.config import PRESETS

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    run_preset("flow_maps", PRESETS, _learn_flow_maps, __doc__, arguments)


def _learn_flow_maps(config, out, command):
    import jax

    # A device for each of the two fits that go side by side, which each compile for it: not worth it where little is run.
    # On an accelerator this changes nothing. Before any array is made.
    jax.config.update("jax_num_cpu_devices", 1 if config.preset == "smoke" else min(os.cpu_count() or 1, 2))
    from experiments.flow_maps.stages import learn_flow_maps

    learn_flow_maps(config, out, command)


if __name__ == "__main__":
    main()
