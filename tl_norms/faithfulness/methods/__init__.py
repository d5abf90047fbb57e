"""Attribution methods by name: the package's own, others' whole-model methods, gradients, rules, and baselines.

A method is a function `(model, tokens, target) -> scores`:

    model    the user's model
    tokens   token ids, [1 pos]
    target   a `Target`: `target.of(model, tokens)` is the number to explain, `target.value(logits)` the same of logits
    scores   one number per position, [pos], signed if it can be; or [draw pos] for a method that is random
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FaithfulnessInputError, MethodOutputError
from ..targets import Target, joined
from .baselines import attention_last, erasure, random, recency
from .gradients import gradient_norm, gradient_x_input, integrated_gradients
from .package import has, variants
from .rules import relevance

Function = Callable[[nn.Module, Tensor, Target], Any]
Methods = Mapping[str, Function] | Sequence[str | Function] | str | Function | None


@dataclass(frozen=True, repr=False)
class Method:
    """A method by name.

    Attributes:
        name: what tables call it
        function: (model, tokens [1 pos], target) -> [pos] or [draw pos]
        draws: rows of scores it returns, 1 unless it is random
        batched: whether the function takes several inputs of one length, [batch pos], with a joined target, and
            returns [batch pos]; a function of one's own gets one input at a time
    """

    name: str
    function: Function
    draws: int = 1
    batched: bool = False

    @property
    def own(self) -> bool:
        """Whether it is one of this package's, which its representation says all of."""
        function: Any = self.function.func if isinstance(self.function, partial) else self.function
        return str(getattr(function, "__module__", "")).startswith(__name__)

    def __repr__(self) -> str:  # the same in every process: files to resume from know methods by it
        function: Any = self.function
        options = ""
        if isinstance(function, partial):
            options, function = f", {function.args}, {sorted(function.keywords.items())}", function.func
        named = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
        return f"Method({self.name!r}, {named}{options}, draws={self.draws})"

    def scores(self, model: nn.Module, tokens: Tensor, target: Target) -> np.ndarray:
        """[draw pos], checked.

        Raises:
            MethodOutputError: not one number per position, or not finite.
        """
        found = self.function(model, tokens, target)
        array = found.detach().double().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found, np.float64)
        shape = (self.draws, tokens.shape[1])
        if self.batched and array.shape == (1, tokens.shape[1]):
            array = array[0]
        if array.shape not in (shape, shape[self.draws == 1 :]):
            raise MethodOutputError(
                f"method {self.name!r} returned {list(array.shape)}; expected one number per position, "
                f"{list(shape[self.draws == 1 :])}, special tokens included."
            )
        if not np.isfinite(array).all():
            raise MethodOutputError(f"method {self.name!r} returned nan or infinity.")
        return array.reshape(shape)

    def scores_of(self, model: nn.Module, tokens: Tensor, targets: Sequence[Target]) -> list[np.ndarray]:
        """[draw pos] of each of several inputs of one length.

        Raises:
            MethodOutputError: not one number per position of each input, or not finite.
        """
        if not self.batched or len(targets) == 1:
            return [self.scores(model, row[None], target) for row, target in zip(tokens, targets, strict=True)]
        array = self.function(model, tokens, joined(targets)).detach().double().cpu().numpy()
        if array.shape != tuple(tokens.shape) or not np.isfinite(array).all():
            raise MethodOutputError(
                f"method {self.name!r} returned {list(array.shape)}, or nan, for {len(tokens)} inputs."
            )
        return list(array[:, None])


_REFERENCE: dict[str, Function] = {
    "attnlrp": partial(relevance, kind="attnlrp"),
    "attnlrp baseline": partial(relevance, kind="attnlrp", baseline="space"),
    "gim": partial(relevance, kind="gim", baseline="space"),
    "attention-last": attention_last,
    "gradient-x-input": gradient_x_input,
    "gradient-norm": gradient_norm,
    "integrated-gradients": integrated_gradients,
    "erasure": erasure,
    "erasure-replace": partial(erasure, removal="replace"),
    "recency": recency,
}


def available(draws: int = 10, seed: int = 0) -> dict[str, Method]:
    """All methods that this installation has, in the order of tables."""
    found = {name: function for name, (function, there) in variants().items() if there()}
    skipped = set() if has("IntegratedGradients", "captum.attr") else {"integrated-gradients"}
    found |= {name: function for name, function in _REFERENCE.items() if name not in skipped}
    methods = {name: Method(name, function, batched=True) for name, function in found.items()}
    return methods | {"random": Method("random", partial(random, draws=draws, seed=seed), draws)}


def chosen(given: Methods, draws: int = 10, seed: int = 0) -> tuple[Method, ...]:
    """Methods by name, functions, or a mapping of names to functions; None for all that are available.

    Random scores are always among them.

    Raises:
        FaithfulnessInputError: there is no such method here.
    """
    known = available(draws, seed)
    if given is None:
        return tuple(known.values())
    if isinstance(given, Mapping):
        found = [Method(str(name), function) for name, function in given.items()]
    else:
        if not isinstance(given, str | Iterable) and not callable(given):
            raise FaithfulnessInputError(
                f"methods is a {type(given).__name__}; expected names, functions, a mapping of names to functions, or "
                f"None for all."
            )
        parts = [given] if isinstance(given, str) or callable(given) else list(given)
        found = [_one(part, known) for part in parts]
    names = [method.name for method in found]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise FaithfulnessInputError(f"two methods are called {repeated[0]!r}: give a mapping of names to functions.")
    return tuple(found) if "random" in names else (*found, known["random"])


def _one(part: str | Function, known: dict[str, Method]) -> Method:
    if callable(part):
        return Method(getattr(part, "__name__", type(part).__name__), part)
    if part not in known:
        raise FaithfulnessInputError(f"there is no method {part!r} here; there are {', '.join(known)}.")
    return known[part]


def explained(method: Method, model: nn.Module, tokens: Tensor, targets: Sequence[Target]) -> list[np.ndarray]:
    """Scores [draw pos] of each of several inputs of one length, without gradients left on the model."""
    with torch.no_grad():
        return method.scores_of(model, tokens, targets)


__all__ = ["Function", "Method", "Methods", "available", "chosen", "explained"]
