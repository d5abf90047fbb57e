"""What every attribution has to beat: chance, position, attention, and one forward pass per token."""

import hashlib
import time

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import AttentionPatternError
from ..running import cache_of, pass_on
from ..subsets import run_asked, subsets_of
from ..targets import Target, separate
from .reading import row


def random(
    model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target, draws: int = 10, seed: int = 0
) -> Float[Tensor, "draw pos"]:
    """Uniform numbers, several draws: the same for the same tokens."""
    key = hashlib.blake2b(repr((tokens.tolist(), seed)).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
    return torch.rand(draws, tokens.shape[1], generator=generator)


def recency(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """The later, the higher."""
    return torch.arange(tokens.shape[1], dtype=torch.float32).expand(tokens.shape)


def attention_last(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """Attention weights of the last layer, mean over heads, in the row of the position that predicts.

    Raises:
        AttentionPatternError: the model never forms them.
    """
    hook = f"blocks.{int(model.cfg.n_layers) - 1}.attn.hook_pattern"  # type: ignore[union-attr]
    cache = cache_of(model, tokens)
    if hook not in cache.cache_dict:
        raise AttentionPatternError(f"{type(model).__name__} has no {hook}: load it with eager attention.")
    return row(cache.cache_dict[hook].mean(1), target)


def erasure(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, removal: str = "cut"
) -> Float[Tensor, "batch pos"]:
    """f(all) - f(all but j) for every position: the costly reference, n + 1 forward passes."""
    n, targets = tokens.shape[1], separate(target, len(tokens))
    inputs = [subsets_of(model, row.cpu(), own, removal) for row, own in zip(tokens, targets, strict=True)]
    last = np.zeros(n, bool)
    last[-1] = True  # predicts, and cannot be removed from a decoder
    sets = np.concatenate([np.ones((1, n), bool), ~np.eye(n, dtype=bool) | last])
    before, started = sum(f.runs for f in inputs), time.perf_counter()
    different = sum(len(set(f.ask(sets))) for f in inputs)
    run_asked(inputs)
    new, seconds = sum(f.runs for f in inputs) - before, time.perf_counter() - started
    pass_on(different - new, seconds * (different - new) / max(new, 1))  # sets that another method has had run
    values = np.stack([f(sets) for f in inputs])
    return torch.from_numpy(values[:, :1] - values[:, 1:])
