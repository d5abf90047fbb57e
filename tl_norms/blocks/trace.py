"""A block's activations in the short run, and the questions asked of them: equal? a sum of those?

Every difference is measured against the branch in question, never against the sum: beside a stream of size 1000 an
attention output of size 0.1 is as visible as beside one of its own size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .structure import Truth

# what a sum may be off by, relative to its smallest part. Blocks are read in float64 where they can be: what
# transformers computes in float32 all the same then sets the error
_SUM_ERROR = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_EXACT_FIT = 1e-9  # a factor that the model holds nowhere by name is believed if it fits this well
_NOTHING = 1e-4  # a fitted factor below this says that the part is not in the sum


class Trace:
    """The activations of one block, by the names of their hooks; `output` is what the block returned."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor], output: Tensor | None = None):
        self.prefix, self.output, self._tensors = prefix, output, tensors

    def __call__(self, name: str) -> Tensor | None:
        value = self._tensors.get(f"{self.prefix}.{name}")
        return value if isinstance(value, Tensor) else None

    def first(self, *names: str) -> tuple[str, Tensor | None]:
        """The first of these hooks that fired, with its activation."""
        return next(((name, self(name)) for name in names if self(name) is not None), ("", None))

    def anywhere(self, hook: str) -> Tensor | None:
        """An activation by its whole name."""
        return self._tensors.get(hook)

    def elsewhere(self, name: str) -> list[str]:
        """Whole names of the same hook in earlier layers, the nearest first."""
        stack, _, layer = self.prefix.rpartition(".")
        names = (f"{stack}.{earlier}.{name}" for earlier in reversed(range(int(layer))))
        return [hook for hook in names if hook in self._tensors]

    def truth(self, name: str) -> Truth:
        return Truth((f"{self.prefix}.{name}",))


def sum_error(dtype: torch.dtype) -> float:
    """What a sum in this dtype may be off by, relative to its smallest part."""
    return _SUM_ERROR[dtype]


def distance(left: Tensor | None, right: Tensor | None, than: Tensor | None = None) -> float:
    """|left - right| relative to |right|, or to |than|; infinite where they cannot be compared."""
    if left is None or right is None or left.shape != right.shape:
        return float("inf")
    left, right = _double(left), _double(right)
    size = float((right if than is None else _double(than)).norm())
    difference = float((left - right).norm())
    return difference / size if size > 0 else 0.0 if difference == 0 else float("inf")


def same(left: Tensor | None, right: Tensor | None, than: Tensor | None = None) -> bool:
    """Equal up to rounding, measured against |right|, or against |than|."""
    return left is not None and right is not None and distance(left, right, than) <= sum_error(right.dtype)


def combination(target: Tensor, parts: Sequence[Tensor], known: Sequence[float] = ()) -> list[float] | None:
    """The numbers c with target = sum c_k parts_k: ones if ones will do, otherwise numbers that the model holds.

    A number that is not among those `known` is fitted, in float64 runs only, and only to rounding. None: no sum.
    """
    if any(part.shape != target.shape for part in parts):
        return None
    if _adds_up(target, parts, ones := [1.0] * len(parts)):
        return ones
    columns = torch.stack([_double(part).flatten() for part in parts], dim=1)
    wanted = _double(target).flatten()[:, None]
    if not bool(torch.isfinite(columns).all()) or not bool(torch.isfinite(wanted).all()):
        return None
    fitted = [float(value) for value in torch.linalg.lstsq(columns, wanted).solution[:, 0]]
    snapped = [_nearest(value, known, sum_error(target.dtype)) for value in fitted]
    chosen = [value if number is None else number for number, value in zip(snapped, fitted, strict=True)]
    if any(abs(value) < _NOTHING for value in chosen):
        return None
    if None in snapped and (target.dtype != torch.float64 or _error(target, parts, chosen) > _EXACT_FIT):
        return None
    return chosen if _adds_up(target, parts, chosen) else None


def _nearest(value: float, known: Sequence[float], slack: float) -> float | None:
    """One, or the multiplier that the model holds, if the fitted value is that up to rounding."""
    near = [number for number in (1.0, *known) if abs(number - value) <= 10 * slack * abs(number)]
    return min(near, key=lambda number: abs(number - value), default=None)


def _adds_up(target: Tensor, parts: Sequence[Tensor], factors: Sequence[float]) -> bool:
    return _error(target, parts, factors) <= sum_error(target.dtype)


def _error(target: Tensor, parts: Sequence[Tensor], factors: Sequence[float]) -> float:
    """What a sum is off by, relative to its smallest summand: infinite if one of them vanishes."""
    summands = [factor * _double(part) for factor, part in zip(factors, parts, strict=True)]
    smallest = min(summands, key=lambda summand: float(summand.norm()))
    if not float(smallest.norm()) > 0:
        return float("inf")
    return distance(sum(summands[1:], summands[0]), target, than=smallest)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()  # not every device knows float64
