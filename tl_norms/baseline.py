"""What contributions are measured against: the embedding of a reference token at every position, or vectors."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .blocks.compat import without_user_hooks
from .errors import UnknownOptionError
from .model_map import HeldStack, ModelMap

Baseline = str | int | Tensor | None


class _Enough(Exception):
    """The stream of the first layer is known: the run ends."""


def references(model_map: ModelMap, baseline: Baseline) -> tuple[Tensor | None, Tensor | None]:
    """What enters the first layer of the last stack, and of its encoder, for the reference, [1 pos d] each.

    Raises:
        UnknownOptionError: neither a token of the model nor a tensor [d_model] or [pos d_model].
    """
    stacks = (model_map.stack, model_map.encoder)
    if baseline is None:
        return None, None
    if isinstance(baseline, Tensor):
        found = [None if stack is None else _vectors(stack, baseline) for stack in stacks]
        return found[0], found[1]
    token = _token(model_map.model, baseline)
    found = [None if stack is None else _embedded(model_map, stack, token) for stack in stacks]
    return found[0], found[1]


def _vectors(stack: HeldStack, given: Tensor) -> Float[Tensor, "1 q d"]:
    x = stack.stream(0)
    if tuple(given.shape) not in ((x.shape[-1],), tuple(x.shape[1:])):
        raise UnknownOptionError(
            f"the baseline has shape {list(given.shape)}; expected [d_model] = [{x.shape[-1]}] or [pos, d_model] = "
            f"{list(x.shape[1:])}."
        )
    return given.detach().to(x).expand(x.shape[1:])[None]


def _token(model: Any, given: str | int) -> int:
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise UnknownOptionError(f"baseline is a {type(given).__name__}; expected a token, its id, or a tensor.")
    if isinstance(given, int):
        size = int(getattr(model.cfg, "d_vocab", 0) or 0)
        if not 0 <= given < size:
            raise UnknownOptionError(f"baseline is token {given}; this model has tokens 0 to {size - 1}.")
        return given
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise UnknownOptionError(f"this model has no tokenizer to find the baseline {given!r}; pass its id.")
    ids = tokenizer.encode(given, add_special_tokens=False)
    if len(ids) != 1:
        parts = [tokenizer.decode([one]) for one in ids]
        raise UnknownOptionError(f"the baseline {given!r} is {len(ids)} tokens, {parts}; expected one.")
    return ids[0]


def _embedded(model_map: ModelMap, stack: HeldStack, token: int) -> Float[Tensor, "1 q d"]:
    """What the model itself makes of the reference token at every position."""
    model: Any = model_map.model
    x, hook = stack.stream(0), stack.joins.streams[0]
    found: list[Tensor] = []

    def listen(tensor: Tensor, hook: Any) -> None:
        found.append(tensor.detach())
        raise _Enough

    def tokens(n: int) -> Tensor:
        return torch.full((1, n), token, device=next(model.parameters()).device)

    other = model_map.encoder if stack is model_map.stack else None
    given = {"decoder_input": tokens(x.shape[1])} if other is not None else {}
    length = x.shape[1] if other is None else other.stream(0).shape[1]
    if model_map.encoder is stack:
        given = {"decoder_input": tokens(1)}
    with torch.no_grad(), without_user_hooks(model):
        try:
            model.run_with_hooks(tokens(length), fwd_hooks=[(hook, listen)], **given)
        except _Enough:
            pass
    return found[0].to(x)
