"""AttnLRP and GIM: gradients of a run whose derivatives, not its numbers, follow other rules.

|                    | AttnLRP (Achtibat et al. 2024)                        | GIM (Edin et al. 2025)              |
|--------------------|-------------------------------------------------------|-------------------------------------|
| norms              | scale held                                            | scale held                          |
| q k and a v        | by halves: gradients of q and k times 1/4, of v 1/2   | the same                            |
| softmax            | true derivative                                       | p(1 - p) at temperature 2           |
| feed-forward       | act(u)/u held                                         | true derivative                     |
| gated feed-forward | act(g)/g held, each branch half                       | true derivative of each branch half |
| input              | embedding, or its difference to a reference           | difference to a reference           |

Relevance of a token is <gradient, input>. The parts do not add up to the target, and no claim is made that they do.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ...blocks.forms import norm_form, norm_kind, placed, places
from ...blocks.modules import default_eps, unwrap
from ...blocks.structure import NormKind
from ...errors import UnsupportedArchitectureError
from ..running import Edit, device_of, embeddings, output
from ..targets import Target
from .gradients import input_gradient
from .reference import Baseline, reference_token

Kind = Literal["attnlrp", "gim"]

_FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.silu,
    functional.gelu,
    lambda x: functional.gelu(x, approximate="tanh"),
    functional.relu,
    lambda x: functional.relu(x).square(),
)
_TEMPERATURE = 2.0
_read: "weakref.WeakKeyDictionary[nn.Module, _Points]" = weakref.WeakKeyDictionary()


def attnlrp(
    model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target, baseline: Baseline = None
) -> Float[Tensor, " pos"]:
    """AttnLRP: <gradient under its rules, embedding - reference>.

    Args:
        model: a TransformerBridge or HookedTransformer whose attention and feed-forwards are hooked
        tokens: [1 pos]
        target: what is explained
        baseline: "space" for the space token, a token id, or None for no reference

    Raises:
        UnsupportedArchitectureError: attention, a norm or a feed-forward that these rules are not made for.
    """
    return relevance(model, tokens, target, "attnlrp", baseline)[0]


def gim(
    model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target, baseline: Baseline = "space"
) -> Float[Tensor, " pos"]:
    """GIM: <gradient under its rules, embedding - reference>. Arguments and errors as `attnlrp`."""
    return relevance(model, tokens, target, "gim", baseline)[0]


def relevance(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, kind: Kind, baseline: Baseline = None
) -> Float[Tensor, "batch pos"]:
    """`attnlrp` or `gim` of several inputs of one length."""
    x, gradient = input_gradient(model, tokens, target, _Run(model, _points(model), kind).edits())
    if baseline is not None:
        x = x - embeddings(model, torch.tensor([[reference_token(model, baseline)]]))[0]
    return (x * gradient).sum(-1)


@dataclass(frozen=True)
class _Points:
    """Hook points of a model by what the rules do there.

    Attributes:
        norms: module path -> whether its form has to be told; where not, a detached hook_scale does it
        attention: (q, k, v, scores, pattern) of every layer
        feed_forwards: (pre, pre_linear or None, post, module path) of every layer
    """

    norms: dict[str, bool]
    attention: tuple[tuple[str, str, str, str, str], ...]
    feed_forwards: tuple[tuple[str, str | None, str, str], ...]
    activations: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    forms: dict[str, NormKind] = field(default_factory=dict)  # of norms that a run has passed: a head's may never be


@dataclass
class _Run:
    """One run under the rules: what passed one hook and is needed at another."""

    model: nn.Module
    points: _Points
    kind: Kind
    seen: dict[str, Tensor] = field(default_factory=dict)

    def edits(self) -> dict[str, Edit]:
        edits: dict[str, Edit] = {}
        for path, told in self.points.norms.items():
            if told:
                edits[f"{path}.hook_in"] = self._keep(path)
                edits[f"{path}.hook_out"] = self._held_norm(path)
            else:
                edits[f"{path}.hook_scale"] = lambda x: x.detach()
        for q, k, v, scores, pattern in self.points.attention:
            edits |= {q: _share(0.25), k: _share(0.25), v: _share(0.5)}
            if self.kind == "gim":
                edits |= {scores: self._keep(scores), pattern: self._warm_softmax(scores)}
        for pre, linear, post, path in self.points.feed_forwards:
            edits |= {name: self._keep(name) for name in (pre, linear) if name is not None}
            edits[post] = self._feed_forward(pre, linear, path)
        return edits

    def _keep(self, name: str) -> Edit:
        def keep(x: Tensor) -> None:
            self.seen[name] = x

        return keep

    def _before(self, name: str) -> Tensor:
        if name not in self.seen:
            raise UnsupportedArchitectureError(
                f"{name} comes too late or not at all in {type(self.model).__name__}: AttnLRP and GIM need it in front."
            )
        return self.seen[name]

    def _held_norm(self, path: str) -> Edit:
        """The model's own numbers with the derivative of x -> centre(x) / s * gain, s held."""
        norm, known = self.model.get_submodule(path), self.points.forms

        def held(y: Tensor) -> Tensor:
            x = self._before(path)
            if path not in known:
                known[path] = _norm_kind(self.model, norm)
            form = norm_form(norm, known[path], default_eps(self.model))
            centred = x - x.mean(-1, keepdim=True) if form.center else x
            scale = (centred.square().mean(-1, keepdim=True) + form.eps).sqrt().detach()
            linear = centred / scale * (1 if form.gain is None else form.gain.to(x))
            whole = linear if form.beta is None else linear + form.beta.to(x)
            off = float((whole - y).detach().norm() / y.detach().norm().clamp(min=1e-12))
            if not off < 1e-3:
                raise UnsupportedArchitectureError(f"{path} is no layer norm that is known (off by {off:.1e}).")
            return y.detach() + linear - linear.detach()

        return held

    def _warm_softmax(self, scores: str) -> Edit:
        def warm(pattern: Tensor) -> Tensor:
            given = self._before(scores)
            if (torch.softmax(given.detach().float(), -1) - pattern.detach().float()).abs().max() > 1e-3:
                raise UnsupportedArchitectureError(
                    f"the pattern behind {scores} is not the softmax of these scores: GIM's rule has nothing to act on."
                )
            return _WarmSoftmax.apply(given, pattern.detach())

        return warm

    def _feed_forward(self, pre: str, linear: str | None, path: str) -> Edit:
        def post(y: Tensor) -> Tensor | None:
            g, u = self._before(pre), None if linear is None else self._before(linear)
            if self.kind == "gim":
                return None if u is None else _share(0.5)(y)
            act = self._activation(path, g.detach(), None if u is None else u.detach(), y.detach())
            ratio = _ratio(act, g.detach())
            made = ratio * g if u is None else 0.5 * ratio * (g * u.detach() + g.detach() * u)
            return y.detach() + made - made.detach()

        return post

    def _activation(self, path: str, g: Tensor, u: Tensor | None, y: Tensor) -> Callable[[Tensor], Tensor]:
        known = self.points.activations
        mlp: Any = self.model.get_submodule(path)
        offset = getattr(mlp, "b_in", None) if u is not None and not hasattr(mlp, "original_component") else None
        y = y if offset is None else y - offset  # HookedTransformer adds it to the neurons of a gated feed-forward
        own = [placed(mlp, place) for place in places(mlp, g.device)]
        for candidate in (known[path],) if path in known else (*own, *_FUNCTIONS):
            made = candidate(g) if u is None else candidate(g) * u
            if (made - y).norm() <= 1e-3 * y.norm().clamp(min=1e-12):
                known[path] = candidate
                return candidate
        raise UnsupportedArchitectureError(f"no activation that is known explains the neurons of {path}.")


def _share(factor: float) -> Callable[[Tensor], Tensor]:
    """The same numbers, the gradient times a factor."""
    return lambda x: factor * x + ((1 - factor) * x).detach()


def _ratio(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """act(x) / x, at 0 its limit."""
    small = x.abs() < 1e-6
    step = torch.full_like(x, 1e-3)
    return torch.where(small, (act(step) - act(-step)) / (2 * step), act(x) / torch.where(small, step, x))


class _WarmSoftmax(torch.autograd.Function):
    """softmax forward; backward p * (g - <g, p>) with p at a higher temperature, without a factor 1/temperature."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, pattern: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return pattern.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scores,), (gradient,) = ctx.saved_tensors, gradients
        warm = torch.softmax(scores / _TEMPERATURE, -1)
        return warm * (gradient - (gradient * warm).sum(-1, keepdim=True)), None


def _points(model: nn.Module) -> _Points:
    """The hook points, read once per model and seen to act."""
    if model not in _read:
        points = _read_points(model)
        for number, part in enumerate(("q", "k", "v")):
            _check_acts(model, part, [names[number] for names in points.attention])
        _read[model] = points
    return _read[model]


def _read_points(model: nn.Module) -> _Points:
    names: Any = model.hook_dict
    layers = range(int(model.cfg.n_layers))  # type: ignore[union-attr]
    attention, feed_forwards = [], []
    for layer in layers:
        at = f"blocks.{layer}."
        wanted = tuple(f"{at}attn.hook_{part}" for part in ("q", "k", "v", "attn_scores", "pattern"))
        _need(model, names, (*wanted, f"{at}mlp.hook_pre", f"{at}mlp.hook_post"))
        linear = f"{at}mlp.hook_pre_linear" if f"{at}mlp.hook_pre_linear" in names else None
        attention.append(wanted)
        feed_forwards.append((f"{at}mlp.hook_pre", linear, f"{at}mlp.hook_post", f"{at}mlp"))
    norms: dict[str, bool] = {}
    for name in names:
        path = name.removesuffix(".hook_scale")
        if path == name:
            continue
        module = model.get_submodule(path)
        bridged = hasattr(module, "original_component")
        if not bridged or not isinstance(unwrap(module), nn.Identity):
            norms[path] = bridged
    return _Points(norms, tuple(attention), tuple(feed_forwards))


@torch.no_grad()
def _norm_kind(model: nn.Module, norm: nn.Module) -> NormKind:
    """The form of a bridge's norm, of the stream or of queries and keys."""
    weight = getattr(unwrap(norm), "weight", None)
    width = int(model.cfg.d_model) if weight is None else weight.shape[-1]  # type: ignore[union-attr]
    parameter = next(model.parameters())
    own: Any = unwrap(norm)  # behind the hooks, which would call this again
    return norm_kind(own, default_eps(model), width, parameter.dtype, parameter.device)


def _need(model: nn.Module, names: Any, wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UnsupportedArchitectureError(
            f"the rules of AttnLRP and GIM need the hooks {', '.join(missing)}, which "
            f"{type(getattr(model, 'original_model', model)).__name__} does not have here."
        )


@torch.no_grad()
def _check_acts(model: nn.Module, part: str, names: list[str]) -> None:
    """An edit of these tensors changes the output: hooks that only look on would leave the rules out silently."""
    ids = torch.tensor([[5, 3, 6, 4]]).to(device_of(model))
    plain = output(model, ids)
    if torch.equal(output(model, ids, {name: lambda x: 1.5 * x for name in names}), plain):
        raise UnsupportedArchitectureError(
            f"edits of hook_{part} do not reach the output of {type(model).__name__}: its attention is not hooked."
        )
