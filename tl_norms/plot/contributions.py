"""The numbers of one text of an attribution."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import PlotInputError
from .select import Tokens, chosen_text, of_text, tokens_of


@dataclass(frozen=True)
class Signed:
    """The numbers of one text of an attribution.

    Attributes:
        words: its tokens, as they are
        stream: contribution of each position at each cut, [cut pos]
        offset: what belongs to no position, [cut]
        value: what every cut adds up to
    """

    words: tuple[str, ...]
    stream: np.ndarray
    offset: np.ndarray
    value: float

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.words))))


def is_attribution(result: Any) -> bool:
    """Whether a result tells contributions at every cut."""
    return all(hasattr(result, name) for name in ("stream", "offset", "value", "heads", "layers"))


def one_attribution(result: Any, tokens: Tokens | None, batch: int | None) -> Signed:
    """The numbers of one text.

    Raises:
        PlotInputError: several texts and no `batch`, or tokens that do not fit.
    """
    stream, offset, value = (on_cpu(part).double() for part in (result.stream, result.offset, result.value))
    text = chosen_text(stream.shape[1] if stream.ndim == 3 else None, batch)
    if text is not None:
        stream, offset, value = stream[:, text], offset[:, text], value[text]
    words = of_text(tokens_of(result) if tokens is None else tokens, text)
    if len(words) != stream.shape[1]:
        raise PlotInputError(
            f"this attribution has {stream.shape[1]} positions, tokens has {len(words)}: pass "
            f"model.to_str_tokens(text) of the text that was run."
        )
    return Signed(tuple(words), stream.numpy(), offset.numpy(), float(value))


def on_cpu(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
