"""A short run of a whole bridge with its own weights: all activations by name, for value paths and ends to be found on.

Layouts are read block by block (see `short_run`); what joins blocks and stands around them shows only in a run of the
whole model.
"""

import warnings
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .compat import without_switches, without_user_hooks
from .fingerprint import fingerprint
from .structure import Reader
from .trial import TOKENS, few_tokens, in_eval_mode


@dataclass(frozen=True)
class WholeRun:
    """All activations of a short run by name, what the model returned, and which block inputs fired more than once."""

    tensors: Mapping[str, Tensor]
    output: Tensor | None
    repeated: frozenset[str]


_Known = dict[tuple[str, str], Any]
_known: "weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, _Known]]" = weakref.WeakKeyDictionary()
_known_to: "weakref.WeakKeyDictionary[Reader, _Known]" = weakref.WeakKeyDictionary()


def known_to(reader: Reader) -> _Known:
    """What has been read off a reader's model. As for its blocks, the weights are looked at once per reader."""
    if reader not in _known_to:
        _known_to[reader] = known(reader.model)
    return _known_to[reader]


def known(model: nn.Module) -> _Known:
    """What has been read off a model, by what it is and the stack; empty again when the weights have changed."""
    now = fingerprint(model)
    found = _known.get(model)
    if found is None or found[0] != now:
        _known[model] = found = (now, {})
    return found[1]


@torch.no_grad()
def whole_run(model: nn.Module) -> WholeRun:
    """A short run of the model, both stacks and both ends; kept for all that is read off it.

    Raises:
        UnsupportedArchitectureError: the model does not run.
    """
    runs = known(model)
    if ("run", "") not in runs:
        counts: dict[str, int] = {}

        def count(tensor: Tensor, hook) -> None:
            counts[hook.name] = counts.get(hook.name, 0) + 1

        stacks = [name for name, _ in model.named_children() if name.endswith("blocks")]
        inputs = [f"{stack}.{layer}.hook_in" for stack in stacks for layer in range(len(getattr(model, stack)))]
        output, cache = _run(model, [(name, count) for name in inputs])
        output = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        repeated = frozenset(name for name, times in counts.items() if times > 1)
        output = output if isinstance(output, Tensor) else None
        runs["run", ""] = WholeRun(cache.cache_dict, output, repeated)
    return runs["run", ""]


def _run(model: nn.Module, hooks: list):
    """What the model returns for a few tokens, and the cache."""
    tokens, extra = few_tokens(model)
    try:
        with in_eval_mode(model), without_switches(model), without_user_hooks(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge names hooks that are switched off
            with model.hooks(fwd_hooks=hooks):
                return model.run_with_cache(tokens, **extra)
    except Exception as error:  # whatever a model raises here, its ends cannot be read
        raise UnsupportedArchitectureError(
            f"{type(model.original_model).__name__} could not be run on {TOKENS} tokens to read its ends "
            f"({type(error).__name__}: {error})."
        ) from error
