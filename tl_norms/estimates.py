"""What a long run will take, before it starts: seconds from a short calibration on the model itself, and memory."""

import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .attribution import attribute
from .blocks.activations import Activations
from .errors import UnknownOptionError
from .held_run import attribution_hooks
from .linear.carry.forward import carry
from .linear.pieces import is_card, pieces
from .model_map import hold_model
from .norms import block_norms
from .plan import reader_of
from .targets import direction
from .walk import Walk

What = Literal["propagate", "attribute", "block_norms"]
_SHORT = 32  # tokens of the calibration at most
_LONGER = 128  # where a whole call is timed: what it takes for any text must not count as what it takes per token
_PATIENCE = 1.0  # seconds of it, loading and reading aside


@dataclass(frozen=True)
class Estimate:
    """What one text will take.

    Attributes:
        what, n: the function and the number of tokens
        seconds: on this machine as it is now; within a factor of two, the model's own run not included
        bytes: of the cache, the held map, what is formed at a time, and the result
        result_bytes: of the result alone
    """

    what: str
    n: int
    seconds: float
    bytes: int
    result_bytes: int

    def __repr__(self) -> str:
        return (
            f"Estimate({self.what} of {self.n} tokens: {_time(self.seconds)}, {self.bytes / 1e6:.0f} MB, "
            f"{self.result_bytes / 1e6:.0f} MB of them the result)"
        )


@torch.no_grad()
def estimate(model: nn.Module, n: int, what: What = "propagate", *, max_memory: int | None = None) -> Estimate:
    """How long an analysis of one text of n tokens will take, and how much memory.

    Runs the model on a few tokens, measures a piece of the analysis on layers of the model's own sizes for about a
    second, and extrapolates: token vectors by the number of pairs that are needed (half for causal models) and the
    mixing by n; the others by a fit a n + b n^2 of two lengths.

    Args:
        model: the model, loaded
        n: tokens of the text (an encoder-decoder: of the source and of the target each)
        what: "propagate", "attribute" (one target) or "block_norms" (its default scopes, all layers)
        max_memory: as for `propagate`

    Returns:
        Estimate: `seconds`, `bytes`, `result_bytes`; prints as a sentence.

    Raises:
        UnknownOptionError: another `what`, or n below one. Otherwise as the function itself.

    Example:
        >>> tl_norms.estimate(model, 512)                                       # doctest: +SKIP
        Estimate(propagate of 512 tokens: 40 s, 310 MB, 38 MB of them the result)
    """
    if what not in get_args(What):
        raise UnknownOptionError(f"what is {what!r}; expected {', '.join(map(repr, get_args(What)))}.")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise UnknownOptionError(f"n is {n!r}; expected a number of tokens, at least 1.")
    if what == "propagate":
        return _of_propagate(model, n, max_memory)
    return _of_fit(model, n, what)


def _of_propagate(model: nn.Module, n: int, max_memory: int | None) -> Estimate:
    short = min(n, _SHORT)
    cache = _cache(model, short)
    reader = reader_of(model)
    model_map = hold_model(model, Activations(cache.cache_dict, True, reader), reader)
    walk = Walk(model_map, 0, model_map.stack.n_layers - 1)
    origin = walk.origin
    d = origin.shape[-1]
    per_vector = _seconds_per_vector(walk)
    encoder = model_map.encoder
    n_sources = n if encoder is None else 2 * n
    pairs = n * (n + 1) / 2 if walk.causal else n * n
    if walk.causal and not walk.in_rows:  # chunks share their first position
        pairs *= 1 + 1 / 8
    pairs += 2 * n  # coefficients, and what belongs to no source
    far = 0.0
    if encoder is not None:
        layers = walk.encoder_layers
        far = n * n * (len(walk.layers) * per_vector + len(layers) * _seconds_per_vector(walk, inside=True))
    seconds = pairs * len(walk.layers) * per_vector + far
    seconds += (pairs + n * (n_sources - n)) * len(walk.layers) * 2 * max(n - short, 0) * d / _rate(origin)
    each = walk.bytes_of(0, walk.n_own) * n // walk.n_own
    together = max(1, pieces(origin.device).rows // n) * each
    formed = together if max_memory is None else max(each, min(max_memory, together))
    size = origin.element_size()
    result = len(walk.layers) * size * n * (n_sources + 1)
    sums = 2 * len(walk.layers) * size * n * d
    return Estimate("propagate", n, seconds, 2 * _bytes(cache, short, n) + formed + result + sums, result)


def _seconds_per_vector(walk: Walk, inside: bool = False) -> float:
    """One vector through one layer, the mean over layers; measured until patience ends."""
    stack = walk.map.encoder if inside and walk.map.encoder is not None else walk.stack
    layers = walk.encoder_layers if inside else walk.layers
    stream = stack.stream(0)
    n_vectors = max(1, pieces(stream.device).rows // stream.shape[1])
    x = stream.expand(n_vectors, *stream.shape).contiguous()
    best = [float("inf")] * len(layers)  # of each layer: whatever else runs can only slow it
    begin = time.perf_counter()
    for turn in range(4):
        for number, layer in enumerate(layers):
            elsewhere = [None if cut is None else x for cut in layer.elsewhere]
            now = _now(x.device)
            vectors = carry(layer.block, x, elsewhere)
            if vectors is not None:
                vectors.norm(dim=-1)
            best[number] = min(best[number], _now(x.device) - now)
            if (turn or number > 2) and time.perf_counter() - begin > _PATIENCE:
                break
    timed = [seconds for seconds in best if seconds != float("inf")]
    return sum(timed) / len(timed) / (n_vectors * stream.shape[1])


def _rate(like: Tensor) -> float:
    """Floating point operations per second of a matrix product: the best of some."""
    size = 4096 if is_card(like.device) else 512  # a card is busy only with more
    left, best = like.new_ones(size, size), float("inf")
    for _ in range(4):
        begin = _now(like.device)
        torch.mm(left, left)
        best = min(best, _now(like.device) - begin)
    return 2 * size**3 / best


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _of_fit(model: nn.Module, n: int, what: str) -> Estimate:
    context = int(getattr(model.cfg, "n_ctx", 0) or 0)  # pyright: ignore[reportAttributeAccessIssue]
    longer = min(n, _LONGER, context if context > 0 else n)
    lengths = (max(1, longer // 4), longer)
    seconds, cache, found, device = [], None, None, next(model.parameters()).device
    for length in lengths:
        cache = _cache(model, length, everything=what == "block_norms")
        times = []
        for _ in range(3):
            begin = _now(device)
            found = _analysed(cache, what)
            times.append(_now(device) - begin)
            if sum(times) > _PATIENCE:
                break
        seconds.append(min(times))
    first, second = lengths
    square = max(0.0, (seconds[1] / second - seconds[0] / first) / max(second - first, 1))
    linear = max(0.0, seconds[1] / second - square * second)
    result = _result_bytes(found) * n // second
    if what == "block_norms":
        result = result * n // second
    return Estimate(what, n, linear * n + square * n * n, 2 * _bytes(cache, second, n) + result, result)


def _analysed(cache, what: str) -> Any:
    if what == "block_norms":
        return block_norms(cache)
    width = Walk(hold_model(cache.model, Activations(cache.cache_dict, True, reader_of(cache.model))), 0, 0).origin
    return attribute(cache, direction(torch.ones(width.shape[-1])))


def _result_bytes(found: Any) -> int:
    if hasattr(found, "stream"):
        parts = [found.stream, found.ffn, found.bypass, found.heads]
    else:
        parts = [found[scope] for scope in found.scopes]
    return sum(part.nbytes for part in parts)


def _bytes(cache, short: int, n: int) -> int:
    """Of the cache of a longer run: patterns grow with n^2."""
    total = 0
    for tensor in {id(t): t for t in cache.cache_dict.values() if isinstance(t, Tensor)}.values():
        squares = tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2] == short
        total += tensor.nbytes * n // short * (n if squares else short) // short
    return total


def _cache(model: nn.Module, n: int, everything: bool = False):
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)  # pyright: ignore[reportAttributeAccessIssue]
    tokens = torch.arange(5, 5 + n)[None].to(next(model.parameters()).device)
    tokens = tokens % size if size > 0 else tokens
    extra = {"decoder_input": tokens} if hasattr(model, "decoder_blocks") else {}
    names = {} if everything else {"names_filter": attribution_hooks(model)}
    return model.run_with_cache(tokens, **names, **extra)[1]  # pyright: ignore[reportCallIssue]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.2g} h"
