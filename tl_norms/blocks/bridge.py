"""TransformerBridge (TransformerLens 3 and 4): where its layout is kept, and the weights of each step."""

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .compat import without_user_hooks
from .experts import read_mixture
from .fingerprint import fingerprint
from .forms import feed_forward_weights, norm_form
from .layout import read_layout
from .modules import affine, component, default_eps, unwrap
from .structure import (
    Affine,
    Attention,
    Block,
    FeedForward,
    FeedForwardKind,
    FeedForwardWeights,
    MixtureKind,
    Norm,
    NormForm,
)
from .value_weights import value_weights


@dataclass(frozen=True)
class _Layout:
    """The blocks of a stack, the fingerprint of the weights they were read on, and what else was found on those."""

    read_on: Hashable
    blocks: tuple[Block | None, ...]
    found: dict[Hashable, Any] = field(default_factory=dict)


_layouts: "weakref.WeakKeyDictionary[nn.Module, dict[str, _Layout]]" = weakref.WeakKeyDictionary()


class BridgeReader:
    """Reads one stack of blocks of a TransformerBridge."""

    def __init__(self, model: nn.Module, stack: str):
        self.model, self.stack = model, stack
        self._layout: _Layout | None = None
        self._aliases: dict[str, tuple[str, ...]] | None = None

    def blocks(self) -> tuple[Block | None, ...]:
        """The layout, read once per model, and again when its weights have changed."""
        return self._read().blocks

    def decided(self, what: Hashable, decide: Callable[[], Any]) -> Any:
        """What `decide` finds on these weights, found once."""
        found = self._read().found
        if what not in found:
            found[what] = decide()
        return found[what]

    def _read(self) -> _Layout:
        if self._layout is None:
            layouts = _layouts.setdefault(self.model, {})
            now = fingerprint(getattr(self.model, self.stack))
            known = layouts.get(self.stack)
            if known is None or known.read_on != now:
                layouts[self.stack] = known = _Layout(now, read_layout(self.model, self.stack))
            self._layout = known
        return self._layout

    def attention_output(self, step: Attention) -> Affine:
        return affine(self._find(step.module + ".o"), step.module + ".o")

    def attention_values(self, step: Attention) -> Affine:
        return value_weights(self._find(step.module), step.module, len(self.attention_output(step).weight))

    def value_bias(self, step: Attention) -> Tensor | None:
        value = getattr(self._find(step.module), "v", None)
        return None if value is None else getattr(unwrap(value), "bias", None)

    def norm(self, step: Norm) -> NormForm:
        if step.kind is None:
            raise UnsupportedArchitectureError(step.refused)
        return norm_form(self._find(step.module), step.kind, default_eps(self.model))

    def inner_norm(self, step: Attention) -> NormForm:
        if step.inner_norm is None or step.inner_kind is None:
            raise UnsupportedArchitectureError(f"{step.module} has no norm before its output projection.")
        return norm_form(self._find(step.inner_norm), step.inner_kind, default_eps(self.model))

    @torch.no_grad()
    def feed_forward(self, step: FeedForward, x: Tensor) -> tuple[FeedForwardWeights, ...]:
        mlp = self._find(step.module)
        if step.kind is None:
            raise UnsupportedArchitectureError(step.refused)
        if isinstance(step.kind, MixtureKind):
            with without_user_hooks(self.model):
                return read_mixture(mlp, step.module, step.kind, x, self._weights)
        return (self._weights(mlp, step.module, step.kind),)

    def _weights(self, mlp: nn.Module, name: str, kind: FeedForwardKind) -> FeedForwardWeights:
        block = self._find(name.rpartition(".")[0])
        return feed_forward_weights(mlp, block, name, kind, default_eps(self.model))

    def projection(self, name: str) -> Affine:
        return affine(self._find(name), name)

    def output_projection(self, name: str) -> Affine:
        part = self._find(name)
        return affine(getattr(part, "o", None) or part.out, name)

    @torch.no_grad()
    def recompute(self, step: Norm | FeedForward, x: Tensor) -> Tensor:
        module = unwrap(self._find(step.module))
        parameter = next(module.parameters(), None)
        return module(x if parameter is None else x.to(parameter)).to(x)

    def equivalents(self, hook: str) -> tuple[str, ...]:
        if self._aliases is None:
            points = self.model.hook_dict  # one point under several names; rebuilt at every access
            names: dict[int, list[str]] = {}
            for name, point in points.items():
                names.setdefault(id(point), []).append(name)
            self._aliases = {name: tuple(names[id(point)]) for name, point in points.items()}
        return self._aliases.get(hook, (hook,))

    def _find(self, path: str) -> nn.Module:
        return component(self.model, path)
