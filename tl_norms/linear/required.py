"""Numbers that are judged: at once, or all together, as each number that a program waits for stops a card.

    with together():           on a card, numbers are collected
        ...
        judged(number, judge)      judge(float) raises if the number is not what it must be
    <- here all are read in one go, and the first that is not raises

Outside of `together`, and on a processor, a number is judged where it is made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from .pieces import is_card

Judge = Callable[[float], None]
_waiting: ContextVar[list[tuple[Tensor, Judge]] | None] = ContextVar("numbers that wait to be judged", default=None)


def judged(number: Tensor, judge: Judge) -> None:
    """Have a tensor of one number judged: now, or at the end of `together`."""
    waiting = _waiting.get()
    if waiting is not None and is_card(number.device):
        waiting.append((number, judge))
    else:
        judge(number.item())


@contextmanager
def together() -> Iterator[None]:
    """Judge all numbers of the body at its end, or before an exception of the body leaves it: the first counts."""
    if _waiting.get() is not None:
        yield
        return
    waiting: list[tuple[Tensor, Judge]] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        numbers = read([number for number, _ in waiting])
        for number, (_, judge) in zip(numbers, waiting, strict=True):
            judge(number)


def read(numbers: list[Tensor]) -> list[float]:
    """Tensors of one number each as numbers, waiting once for every device and dtype."""
    found: dict[int, float] = {}
    kinds = {(number.device, number.dtype) for number in numbers}
    for kind in kinds:
        here = [place for place, number in enumerate(numbers) if (number.device, number.dtype) == kind]
        found.update(zip(here, torch.stack([numbers[place] for place in here]).tolist(), strict=True))
    return [found[place] for place in range(len(numbers))]
