"""Learning the dynamics of training: record runs, learn the field that moves their weights, forecast where they end.

    import gfm_jax as gfm

The names used most are here, verbs first: `gfm.record`, `gfm.split`, `gfm.fit`, `gfm.forecast`, `gfm.sample`, `gfm.save`,
`gfm.load`, and the others that `dir(gfm)` lists. The rest is in a room for each question:

    gfm.runs          training runs as data: tasks, the recorder, recordings on disk
    gfm.forecasting   where will this run end?
    gfm.weights       which weights for this task?
    gfm.flows         from noise to data, and back
    gfm.optimizers    how does training move?

and `gfm.networks`, `gfm.datasets`, `gfm.solve`, `gfm.fitting`. `gfm.base` holds the records that all of them speak. A room is
imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]  a type checker reads the stub
