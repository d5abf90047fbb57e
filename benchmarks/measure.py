"""Options, time, memory and tables of all benchmarks.

Contenders take turns, so that a busy machine slows all of them alike.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: for one thread on a machine that others use
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parser(
    description: str, cases: Iterable[str], lengths: list[int], more: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `more` are cases that run if asked for."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--cases", nargs="+", choices=[*cases, *more], default=list(cases))
    made.add_argument("--lengths", nargs="+", type=int, default=lengths)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, with --threads 1")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    made.add_argument("--dtype", choices=list(DTYPES), default="float32")
    made.add_argument("--tf32", action="store_true", help="a card's shorter float32 products: see the errors")
    made.add_argument("--json", type=Path, help="where to write the rows too")
    return made


def begin(options: argparse.Namespace) -> None:
    """Threads; no autograd; TF32 only if asked for."""
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high" if getattr(options, "tf32", False) else "highest")


def machine(options: argparse.Namespace) -> str:
    """One line: the device, its dtype and threads, and the versions of what runs."""
    where = torch.device(options.device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else _processor()
    threads = "" if where.type == "cuda" else f", {options.threads} threads"
    names = ("torch", "transformers", "transformer-lens", "tl-norms")
    versions = ", ".join(f"{package} {version(package)}" for package in names)
    kind = options.dtype + (", TF32" if getattr(options, "tf32", False) else "")
    return f"{name}, {kind}{threads}, {options.clock} clock; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    """The machine and a table to the screen; also a file, if one was asked for."""
    print(f"{machine(options)}\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(options), "rows": rows}, indent=1) + "\n")


def waited() -> None:
    """Until a graphics card has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(
    contenders: dict[str, Callable[[], object]], *, rounds: int, clock: str = "wall", budget: float = 60.0
) -> dict[str, float]:
    """Median seconds of each contender over `rounds` turns; whoever has used up `budget` seconds drops out.

    The first turn warms up and does not count, unless it was the only one. What does not fit into a card is nan.
    """
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            if sum(seconds[name]) < budget:
                waited()
                start = now()
                try:
                    run()
                except torch.OutOfMemoryError:
                    seconds[name] = [math.nan]
                    continue
                waited()
                seconds[name].append(now() - start)
    return {name: statistics.median(values[1:] or values) for name, values in seconds.items()}


def peak(run: Callable[[], object], device: str) -> int:
    """The most bytes that are alive at once and were made by it; on a card scratch space of operators as well."""
    if torch.device(device).type != "cuda":
        with PeakMemory() as memory:
            run()
        return memory.peak
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def matrix_rate(
    *,
    clock: str = "wall",
    rounds: int = 5,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> float:
    """This machine's matrix product, in floating point operations per second: the best of several."""
    size = 2048 if torch.device(device).type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best = min(timed({"product": lambda: left @ right}, rounds=1, clock=clock)["product"] for _ in range(rounds))
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
