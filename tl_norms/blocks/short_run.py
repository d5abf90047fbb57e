"""A short run of a bridge, for its layout to be read off: five tokens, without dropout and without the user's hooks."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .trace import Trace, same

_TOKENS = 5


def telling_run(model: nn.Module, stack: str) -> Mapping[str, Tensor]:
    """The activations of one stack, by name, from a run in which no attention writes nothing."""
    tensors = _short_run(model, stack)
    if _attention_is_silent(stack, len(getattr(model, stack)), tensors):  # a sum with it and one without look alike
        tensors = _short_run(model, stack, disturbed=True)
    return tensors


@contextmanager
def without_user_hooks(model: nn.Module) -> Iterator[None]:
    """The user's own hooks neither fire nor change anything meanwhile; those the bridge is made of stay."""
    points = {id(point): point for point in model.hook_dict.values()}.values()
    saved = [(point, point._forward_hooks) for point in points]
    for point, hooks in saved:
        users = {handle.hook.id for handle in point.fwd_hooks if not _is_internal(handle)}
        point._forward_hooks = OrderedDict((key, hook) for key, hook in hooks.items() if key not in users)
    try:
        yield
    finally:
        for point, hooks in saved:
            point._forward_hooks = hooks


def _is_internal(handle) -> bool:
    """Whether the bridge itself placed a hook, to fire one hook point from another."""
    function = getattr(handle, "user_hook", None)
    return handle.is_permanent and (function is None or str(function.__module__).startswith("transformer_lens."))


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would keep sums from being sums; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _attention_is_silent(stack: str, n_layers: int, tensors: Mapping[str, Tensor]) -> bool:
    """Whether some attention writes nothing that its residual connection would show."""
    for layer in range(n_layers):
        trace = Trace(f"{stack}.{layer}", tensors)
        stream, branch = trace("hook_in"), trace.first("attn.o.hook_out", "self_attn.o.hook_out")[1]
        if stream is not None and branch is not None and same(stream, stream + branch):
            return True
    return False


def _disturb(tensor: Tensor, hook: object) -> Tensor:
    """Fixed numbers, as large as a typical activation, on what attention writes."""
    steps = torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32).reshape(tensor.shape)
    return tensor + (steps * steps * 0.7).sin().to(tensor.dtype)


def _short_run(model: nn.Module, stack: str, disturbed: bool = False) -> Mapping[str, Tensor]:
    """The activations of a few tokens, by name; `disturbed`, with something added to all attention outputs."""
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)
    tokens = (torch.arange(_TOKENS) + 5) % size if size > 0 else torch.arange(_TOKENS)
    tokens = tokens[None].to(next(model.parameters()).device)
    # a decoder gets one token less: what belongs to its positions and what to the encoder's differ in shape then
    extra = {"decoder_input": tokens[:, :-1]} if hasattr(model, "decoder_blocks") else {}
    try:
        with torch.no_grad(), _in_eval_mode(model), without_user_hooks(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge names hooks that are switched off
            outputs = [name for name in dict(model.hook_dict.items()) if name.endswith("attn.o.hook_out") and disturbed]
            with model.hooks(fwd_hooks=[(name, _disturb) for name in outputs]):
                _, cache = model.run_with_cache(tokens, names_filter=lambda n: n.startswith(stack + "."), **extra)
    except Exception as error:  # whatever a model raises here, its layout cannot be read
        raise UnsupportedArchitectureError(
            f"{type(model.original_model).__name__} could not be run on {_TOKENS} tokens to read its layout "
            f"({type(error).__name__}: {error})."
        ) from error
    return cache.cache_dict
