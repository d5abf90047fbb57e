"""The numbers of one text of an attribution."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import PlotInputError
from .select import Tokens, chosen_text, of_text, tokens_of
from .subjects import refuse_targets


@dataclass(frozen=True)
class Signed:
    """The numbers of one text of an attribution.

    Attributes:
        words: its tokens, as they are
        stream: contribution of each position at each cut, [cut pos]
        offset: what belongs to no position, [cut]
        value: what every cut adds up to
        source: of an encoder-decoder, the tokens of the source sentence
        beside: what crosses the decoder's cuts in the encoder's output, [cut source_pos]; with `stream` and `offset`
            it adds up to the value
        below: the encoder's own cuts, [cut source_pos]
        below_offset: [cut]; with `below` and the input tokens `stream[0]` it adds up to the value
    """

    words: tuple[str, ...]
    stream: np.ndarray
    offset: np.ndarray
    value: float
    source: tuple[str, ...] = ()
    beside: np.ndarray | None = None
    below: np.ndarray | None = None
    below_offset: np.ndarray | None = None

    @property
    def positions(self) -> tuple[str, ...]:
        return tuple(map(str, range(len(self.words))))


def is_attribution(result: Any) -> bool:
    """Whether a result tells contributions at every cut."""
    return all(hasattr(result, name) for name in ("stream", "offset", "value", "heads", "layers"))


def one_attribution(result: Any, tokens: Tokens | None, batch: int | None) -> Signed:
    """The numbers of one text.

    Raises:
        PlotInputError: several targets, several texts and no `batch`, or tokens that do not fit.
    """
    refuse_targets(result)
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
    return Signed(tuple(words), stream.numpy(), offset.numpy(), float(value), **_source(result, text))


def _source(result: Any, text: int | None) -> dict[str, Any]:
    """What is known of the source sentence of an encoder-decoder."""
    if getattr(result, "beside", None) is None or getattr(result, "source_stream", None) is None:
        return {}

    def one(value: Tensor) -> np.ndarray:
        value = on_cpu(value).double()
        return (value if text is None else value[:, text]).numpy()

    below, strings = one(result.source_stream), getattr(result, "source_strings", None)
    words = tuple(map(str, range(below.shape[1]))) if strings is None else tuple(of_text(strings, text))
    return {
        "source": words,
        "beside": one(result.beside),
        "below": below,
        "below_offset": one(result.source_offset),
    }


def on_cpu(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
