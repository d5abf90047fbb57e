"""Time and memory: contenders take turns, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: for one thread on a machine that others use


def timed(
    contenders: dict[str, Callable[[], object]], *, rounds: int, clock: str = "wall", budget: float = 60.0
) -> dict[str, float]:
    """Median seconds of each contender over `rounds` turns; whoever has used up `budget` seconds drops out.

    The first turn warms up and does not count, unless it was the only one.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            if sum(seconds[name]) < budget:
                begin = now()
                run()
                seconds[name].append(now() - begin)
    return {name: statistics.median(values[1:] or values) for name, values in seconds.items()}


def matrix_rate(*, clock: str = "wall", size: int = 2048, rounds: int = 5) -> float:
    """This machine's float32 matrix product, in floating point operations per second: the best of several."""
    now = CLOCKS[clock]
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(rounds):
        begin = now()
        left @ right
        best = min(best, now() - begin)
    return 2 * size**3 / best


class PeakMemory(TorchDispatchMode):
    """Bytes of tensors that are alive at once and were made inside: `with PeakMemory() as memory: ...; memory.peak`.

    Scratch space inside a single torch operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):  # what existed before is not ours
            if isinstance(leaf, torch.Tensor):
                key = leaf.untyped_storage()._cdata
                if key not in self._alive:
                    self._known.add(key)
        result = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._alive and storage._cdata not in self._known:
                    self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a markdown table; numbers with three digits."""
    names = list(rows[0])

    def text(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *[[text(row[name]) for name in names] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
