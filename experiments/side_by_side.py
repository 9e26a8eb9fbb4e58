"""Independent work in two threads: while one program compiles, which keeps one core busy, another one runs."""

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax

__all__ = ["on_own_devices", "side_by_side"]


def side_by_side(function: Callable, items: Iterable) -> Iterator:
    """`map(function, items)`, two at a time; one at a time where several hosts have to make their calls in one order."""
    with ThreadPoolExecutor(1 if jax.process_count() > 1 else 2) as pool:
        yield from pool.map(function, items)


def on_own_devices(function: Callable, items: Iterable) -> Iterator:
    """The same, each of the two on a device of its own where there are two; on the CPU each of these keeps one core busy."""
    free = queue.SimpleQueue()
    for device in jax.local_devices()[:2] * (2 // min(jax.local_device_count(), 2)):
        free.put(device)

    def run(item):
        device = free.get()
        try:
            with jax.default_device(device):
                return function(item)
        finally:
            free.put(device)

    return side_by_side(run, items)
