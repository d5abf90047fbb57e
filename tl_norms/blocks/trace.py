"""A short run's tensors, and the questions asked of them: equal? a sum of those?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .structure import Truth


class Trace:
    """The tensors of one block, by the names of their hooks."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]):
        self.prefix, self._tensors = prefix, tensors

    def __call__(self, name: str) -> Tensor | None:
        value = self._tensors.get(f"{self.prefix}.{name}")
        return value if isinstance(value, Tensor) else None

    def first(self, *names: str) -> tuple[str, Tensor | None]:
        """The first of these hooks that fired, with its tensor."""
        return next(((name, self(name)) for name in names if self(name) is not None), ("", None))

    def anywhere(self, hook: str) -> Tensor | None:
        """A tensor by its whole name."""
        return self._tensors.get(hook)

    def elsewhere(self, name: str) -> list[str]:
        """Whole names of the same hook in earlier layers, the nearest first."""
        stack, _, layer = self.prefix.rpartition(".")
        names = (f"{stack}.{earlier}.{name}" for earlier in reversed(range(int(layer))))
        return [hook for hook in names if hook in self._tensors]

    def truth(self, name: str) -> Truth:
        return Truth((f"{self.prefix}.{name}",))


def distance(left: Tensor | None, right: Tensor | None) -> float:
    """The largest difference, relative to the largest number; infinite where they cannot be compared."""
    if left is None or right is None or left.shape != right.shape:
        return float("inf")
    left, right = left.detach(), right.detach()
    return float((left - right).abs().max() / right.abs().max().clamp_min(1e-30))


def rounding(dtype: torch.dtype) -> float:
    """What one sum, or one projection, in this dtype may be off by."""
    eps = torch.finfo(dtype).eps
    return 2 * eps if eps > 1e-4 else 64 * eps


def same(left: Tensor | None, right: Tensor | None) -> bool:
    """Equal up to the rounding of one sum."""
    return right is not None and distance(left, right) <= rounding(right.dtype)


def combination(target: Tensor, parts: Sequence[Tensor]) -> list[float] | None:
    """The numbers c with target = sum c_k parts_k, ones if ones will do; None if there are none."""
    if any(part.shape != target.shape for part in parts):
        return None
    if same(sum(parts[1:], parts[0]), target):
        return [1.0] * len(parts)
    columns = torch.stack([part.double().flatten() for part in parts], dim=1)
    solution = torch.linalg.lstsq(columns, target.double().flatten()[:, None]).solution
    fitted = (columns @ solution).reshape(target.shape)
    # three further digits of room: the run's rounding also moves the fitted numbers
    if distance(fitted, target.double()) > 8 * rounding(target.dtype):
        return None
    return [float(value) for value in solution[:, 0]]
