"""Runs of a model with edits: hooks for one run, on the model as it is, removed again whatever happens."""

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError

Edit = Callable[[Tensor], Tensor | None]

_EMBEDDINGS = ("embed.hook_out", "hook_embed", "embed.hook_embed")  # bridge, HookedTransformer, HookedEncoder
_causal: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class _Reached(Exception):
    """A run has come as far as it is needed."""


@contextmanager
def edited(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """While this lasts, the tensors at these hook points go through these functions (None: unchanged).

    Registered with torch itself behind TransformerLens' hooks, so the user's own hooks stay and stay as they are.
    """
    points: Any = model.hook_dict
    handles = []
    try:
        for name, edit in edits.items():
            handles.append(points[name].register_forward_hook(_as_torch(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_torch(edit: Edit) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    return lambda module, given, output: edit(output)


def output(
    model: nn.Module,
    tokens: Int[Tensor, "batch pos"],
    edits: Mapping[str, Edit] | None = None,
    mask: Tensor | None = None,
    at: str | None = None,
    positions: Int[Tensor, "batch pos"] | None = None,
) -> Float[Tensor, "batch pos d_out"]:
    """What the model returns (logits, or the last hidden state of a model without a head), or has at a hook point.

    Where a hook point is asked for, the run ends there.
    """
    options: dict[str, Any] = {}
    caught: list[Tensor] = []

    def catch(x: Tensor) -> None:
        caught.append(x)
        raise _Reached

    if at is not None:
        edits = {**(edits or {}), at: catch}
    if mask is not None:
        encoder = type(model).__name__ == "HookedEncoder"
        options["one_zero_attention_mask" if encoder else "attention_mask"] = mask
    if positions is not None:
        options["position_ids"] = positions
    with edited(model, edits or {}), suppress(_Reached):
        found = model(tokens.to(device_of(model)), **options)
    if caught:
        return caught[0]
    if isinstance(found, tuple):
        found = found[0]
    found = getattr(found, "last_hidden_state", found)
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise UnsupportedArchitectureError(
            f"expected logits or hidden states [batch pos d] from {type(model).__name__}, got {type(found).__name__}. "
            f"Encoder-decoders and classifiers cannot be judged."
        )
    return found


def last_states_hook(model: nn.Module) -> str:
    """Where the stream leaves the last block."""
    points: Any = model.hook_dict
    at = f"blocks.{int(model.cfg.n_layers) - 1}."  # type: ignore[union-attr]
    for name in ("hook_normalized_resid_post", "hook_out", "hook_resid_post"):  # HookedEncoder's first
        if at + name in points:
            return at + name
    raise UnsupportedArchitectureError(f"{type(model).__name__} has no hook behind its last block {at!r}.")


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def embedding_hook(model: nn.Module) -> str:
    """Where the token embeddings pass, before positions are added to them."""
    points: Any = model.hook_dict
    for name in _EMBEDDINGS:
        if name in points:
            return name
    raise UnsupportedArchitectureError(
        f"{type(model).__name__} has no hook on its token embeddings; expected one of {', '.join(_EMBEDDINGS)}."
    )


@torch.no_grad()
def embeddings(model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """The token embeddings, as they pass the hook: scaled where the model scales them."""
    return output(model, tokens, at=embedding_hook(model)).detach().clone()


def is_causal(model: nn.Module) -> bool:
    """Whether positions see only what is before them: measured once per model."""
    if model not in _causal:
        with torch.no_grad():
            ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]]) % max(int(getattr(model.cfg, "d_vocab", 8) or 8), 8)
            found = output(model, ids).float()
        _causal[model] = bool(torch.equal(found[0, 0], found[1, 0]) or torch.allclose(found[0, 0], found[1, 0], 1e-6))
    return _causal[model]


@dataclass
class Passes:
    """How many rows went through the model, forward and backward, and how many seconds that took."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


_counting: "ContextVar[Passes | None]" = ContextVar("passes", default=None)
_uncounted: "ContextVar[bool]" = ContextVar("uncounted", default=False)


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Count rows behind the last block: whatever a method does inside, a pass is a pass."""
    passes = Passes()
    outer = _counting.set(passes)

    def count(x: Tensor) -> None:
        if not _uncounted.get():
            passes.forward += len(x)
        if x.requires_grad:
            x.register_hook(lambda gradient: _add_backward(passes, len(gradient)))

    started = time.perf_counter()
    try:
        with edited(model, {last_states_hook(model): count}):
            yield passes
    finally:
        _counting.reset(outer)
    passes.seconds += time.perf_counter() - started


@contextmanager
def uncounted() -> Iterator[None]:
    """While this lasts, rows are not counted: of runs that do the work of another number of rows (`pass_on`)."""
    token = _uncounted.set(True)
    try:
        yield
    finally:
        _uncounted.reset(token)


def pass_on(forward: int, seconds: float, backward: int = 0) -> None:
    """Count a run that was made for another method and is read again: every method is charged for all it needs."""
    passes = _counting.get()
    if passes is not None:
        passes.forward += forward
        passes.backward += backward
        passes.seconds += seconds


def _add_backward(passes: Passes, n: int) -> None:
    passes.backward += n


@contextmanager
def remembering(store: "ContextVar[dict | None]") -> Iterator[None]:
    """While this lasts, the store is a dict, empty at first; before and after it is what it was."""
    token = store.set({})
    try:
        yield
    finally:
        store.reset(token)


_shared: "ContextVar[dict | None]" = ContextVar("shared runs", default=None)


def shared_runs() -> AbstractContextManager[None]:
    """While this lasts, methods that need the same run share it; nobody may change the model meanwhile."""
    return remembering(_shared)


def shared_run(key: tuple, run: Callable[[], Any], forward: int, backward: int = 0) -> Any:
    """What a run gives, made once where runs are shared; every method is charged for all of it."""
    known = _shared.get()
    if known is not None and key in known:
        found, seconds = known[key]
        pass_on(forward, seconds, backward)
        return found
    started = time.perf_counter()
    found = run()
    if known is not None:
        known[key] = (found, time.perf_counter() - started)
    return found


def cache_of(model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Any:
    """The activations of a run, shared where runs are."""
    whole: Any = model

    def run() -> Any:
        with torch.no_grad():
            return whole.run_with_cache(tokens.to(device_of(model)))[1]

    return shared_run(("cache", id(model), *tokens.shape, *tokens.flatten().tolist()), run, len(tokens))
