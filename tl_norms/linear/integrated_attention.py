"""Attention as an operator that also credits what decided the pattern: queries and keys, not only values.

With the integrals of `softmax_path` held, the mixed values of every head are affine in the stream. A logit
s_ij = held_ij <q_i, k_j> + added_ij is bilinear in the stream; a share of it goes through q_i with k_j held, the rest
through k_j with q_i held (one half each is what integrated gradients give). `held` is the scale, times the secant of a
softcap; `added` (ALiBi, relative position biases) and a sink's logit belong to no source; a sink's value is zero.

    forward    mixed_i(x) = sum_j mean_ij v_j(x) + sum_j w_ij(x) B_ij,
               w_ij(x) = held_ij (share <q_i(x), k_j> + (1 - share) <q_i, k_j(x)>)
    transpose  c = J <g_i, v_j>:  queries share sum_j held_ij c_ij k_j,  keys (1 - share) sum_i held_ij c_ij q_i,
               values sum_i mean_ij g_i

What is carried costs [*s b h q k] for its leading axes *s; nothing is [query, key, d_head].
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .operators import Operator, applied
from .softmax_path import SoftmaxPath, softmax_path


@dataclass(frozen=True)
class IntegratedAttention:
    """Stream to the mixed values of every head, [*s b pos d] -> [*s b q h e], the softmax integrated.

    An operator that is None reads another stream: its part is left out here, offset included. So the attention of a
    decoder over an encoder is two of these, one with `queries`, one with `keys` and `values`. What belongs to no source
    (`added`, a sink) is with the operator that has `queries`. Keys before `first_key` are attended to, but not carried:
    `keys` and `values` read the positions from there on.
    """

    queries: Operator | None  # [*s b q d] -> [*s b q h c]
    keys: Operator | None  # [*s b k d] -> [*s b k h c]
    values: Operator | None  # [*s b k d] -> [*s b k h e]
    q: Float[Tensor, "b q h c"]
    k: Float[Tensor, "b k h c"]
    v: Float[Tensor, "b k h e"]
    path: SoftmaxPath  # with a sink, its last key
    held: Float[Tensor, "b h q k"] | float = 1.0
    added: Float[Tensor, "#b #h #q k2"] | None = None  # with a sink, its logit last
    query_share: float = 0.5
    first_key: int = 0

    def __call__(self, x: Float[Tensor, "*s b p d"]) -> Float[Tensor, "*s b q h e"]:
        q, k, v = (None if part is None else part(x) for part in (self.queries, self.keys, self.values))
        made = self._mixed(q, k, v, None)
        return x.new_zeros(*x.shape[:-3], *self.q.shape[:3], self.v.shape[-1]) if made is None else made

    @property
    def offset(self) -> Float[Tensor, "b q h e"] | None:
        parts = (self.queries, self.keys, self.values)
        q, k, v = (None if part is None or part.offset is None else self._shaped(part) for part in parts)
        return self._mixed(q, k, v, None if self.queries is None else self.added)

    def transpose(self, g: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b p d"]:
        parts = [part for part in self.transposes(g) if part is not None]
        return sum(parts[1:], parts[0])

    def transposes(self, g: Float[Tensor, "*s b q h e"]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A covector of the mixed values carried back to the stream through queries, keys and values apart."""
        to_q, to_k, to_v = self.at_heads(g)
        by_query = None if self.queries is None or to_q is None else self.queries.transpose(to_q)
        by_key = None if self.keys is None or to_k is None else self.keys.transpose(to_k)
        by_value = None if self.values is None or to_v is None else self.values.transpose(to_v)
        return by_query, by_key, by_value

    def at_heads(self, g: Float[Tensor, "*s b q h e"]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A covector of the mixed values carried back to queries, keys and values themselves."""
        to_q = to_k = to_v = None
        if self.queries is not None or self.keys is not None:
            credit = self.logits(g) * self.held
            if self.queries is not None:
                to_q = torch.einsum("...bhqk,bkhc->...bqhc", credit, self.k) * self.query_share
            if self.keys is not None:
                credit = credit[..., self.first_key :]
                to_k = torch.einsum("...bhqk,bqhc->...bkhc", credit, self.q) * (1 - self.query_share)
        if self.values is not None:
            to_v = torch.einsum("bhqk,...bqhe->...bkhe", self.mean[..., self.first_key :], g)
        return to_q, to_k, to_v

    def logit_credits(self, g: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b h q k2"]:
        """c_ij s_ij: what every real logit contributed; with a sink, its own last."""
        real = torch.einsum("bqhc,bkhc->bhqk", self.q, self.k) * self.held
        real = self._with_sink(real)
        real = real if self.added is None else real + self.added
        scores = torch.einsum("...bqhe,bkhe->...bhqk", g, self.v)
        return self.path.spread(self._with_sink(scores)) * real

    @property
    def mixed(self) -> Float[Tensor, "b q h e"]:
        """The mixed values of the real run."""
        return torch.einsum("bhqk,bkhe->bqhe", self.path.pattern[..., : self.k.shape[1]], self.v)

    def logits(self, g: Float[Tensor, "*s b q h e"]) -> Float[Tensor, "*s b h q k"]:
        """The credit of one unit of each logit, c_ij; times the logit, what that logit contributed."""
        return self._spread(torch.einsum("...bqhe,bkhe->...bhqk", g, self.v))

    @property
    def mean(self) -> Float[Tensor, "b h q k"]:
        """int softmax(t s) dt of the real keys."""
        return self.path.mean[..., : self.k.shape[1]]

    def _mixed(self, q: Tensor | None, k: Tensor | None, v: Tensor | None, added: Tensor | None) -> Tensor | None:
        """Parts of queries, keys, values and of the logits themselves, to mixed values."""
        w = None
        if q is not None:
            w = torch.einsum("...bqhc,bkhc->...bhqk", q * self.query_share, self.k)
        if k is not None:
            by_key = torch.einsum("bqhc,...bkhc->...bhqk", self.q * (1 - self.query_share), k)
            by_key = F.pad(by_key, (self.first_key, 0)) if self.first_key else by_key
            w = by_key if w is None else w.add_(by_key)
        w = None if w is None else w.mul_(self.held)
        if added is not None:
            added = added.expand(*self.path.mean.shape)
            w = added if w is None else self._with_sink(w) + added
        made = None if w is None else torch.einsum("...bhqk,bkhe->...bqhe", self._spread(w), self.v)
        if v is not None:
            moved = torch.einsum("bhqk,...bkhe->...bqhe", self.mean[..., self.first_key :], v)
            made = moved if made is None else made + moved
        return made

    def _spread(self, w: Tensor) -> Tensor:
        return self.path.spread(self._with_sink(w))[..., : self.k.shape[1]]

    def _with_sink(self, w: Tensor) -> Tensor:
        return F.pad(w, (0, self.path.mean.shape[-1] - w.shape[-1]))

    def _shaped(self, part: Operator) -> Tensor:
        """An operator's offset at every position: it may be the same at all of them."""
        like = self.q if part is self.queries else (self.k if part is self.keys else self.v)[:, self.first_key :]
        return torch.as_tensor(part.offset).expand(like.shape)


def hold_integrated_attention(
    x: Float[Tensor, "b q d"],
    queries: Operator,
    keys: Operator,
    values: Operator,
    *,
    source: Float[Tensor, "b k d2"] | None = None,
    scale: float = 1.0,
    visible: Bool[Tensor, "#b #h #q k"] | None = None,
    softcap: float | None = None,
    added: Float[Tensor, "#b #h #q k"] | None = None,
    sink: Float[Tensor, " h"] | None = None,
    query_share: float = 0.5,
) -> tuple[IntegratedAttention, ...]:
    """Attention of the stream x (from `source`, if keys and values are read there), the softmax integrated.

    s_ij = softcap tanh(scale <q_i, k_j> / softcap) + added_ij over the visible keys. One operator for x; with `source`,
    a second one for it. `path.pattern` is the pattern that was rebuilt (a sink's column last) and has to be compared
    with the model's own; `path.error` says how well its integrals agree, `len(path.nodes)` what they cost.
    """
    beside = x if source is None else source
    q, k, v = applied(queries, x), applied(keys, beside), applied(values, beside)
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k).mul_(scale)  # a plane, and planes are what takes memory
    held: float | Tensor = scale
    if softcap is not None:
        plain, logits = logits, softcap * torch.tanh(logits / softcap)
        safe = plain.masked_fill(plain == 0, 1.0)
        held = scale * torch.where(plain == 0, torch.ones_like(plain), logits / safe)  # the secant through zero
        del plain, safe
    logits = logits if added is None else logits.add_(added)
    logits = logits if visible is None else logits.masked_fill_(~visible, -torch.inf)
    if sink is not None:
        column = sink[:, None, None].to(logits)
        logits = torch.cat([logits, column.expand(*logits.shape[:3], 1)], -1)
        zeros = torch.zeros_like(logits[:1, :, :1, :-1]) if added is None else added
        zeros = zeros.expand(zeros.shape[0], len(sink), *zeros.shape[2:])
        added = torch.cat([zeros, column.expand(*zeros.shape[:3], 1)], -1)
    if added is not None:  # shifting a row changes nothing, but a mask written as a number would overflow
        added = added.masked_fill(~added.isfinite(), 0.0).clamp_min(-1e5)
    path = softmax_path(logits)
    if source is None:
        return (IntegratedAttention(queries, keys, values, q, k, v, path, held, added, query_share),)
    return (
        IntegratedAttention(queries, None, None, q, k, v, path, held, added, query_share),
        IntegratedAttention(None, keys, values, q, k, v, path, held, added, query_share),
    )
