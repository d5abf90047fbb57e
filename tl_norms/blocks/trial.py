"""What every short run of a bridge has in common: a few tokens, and no dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOKENS = 5


def few_tokens(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model is run on: positional and named inputs."""
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    tokens = (torch.arange(TOKENS) + 5) % size if size > 0 else torch.arange(TOKENS)
    tokens = tokens[None].to(next(model.parameters()).device)
    # a decoder gets one token less: activations of its positions and of the encoder's then differ in shape
    return tokens, {"decoder_input": tokens[:, :-1]} if hasattr(model, "decoder_blocks") else {}


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would keep sums from being sums; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
