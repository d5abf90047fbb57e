"""Attention with its softmax integrated: of one layer's logits, what is needed to share out its output exactly.

One head, one query i, logits s_ij over the visible keys, values v_j. On the path (t s, t v), t in [0, 1], the output
is o(t) = sum_j softmax(t s)_j t v_j, and integrated gradients are complete (o(0) = 0):

    o_i = sum_j mean_ij v_j + sum_j s_ij B_ij        p(t) = softmax(t s_i)
    mean_ij = int p_j(t) dt                          B_ij = int t p_j(t) (v_j - sum_k p_k(t) v_k) dt

B is [query key d_head] and never formed. J_i = int t (diag p - p p^T) dt is symmetric, and one function of it serves
both ways: sum_j w_ij B_ij = sum_k (J w)_ik v_k, and the credit of a logit is c_ij = (J G)_ij with G_ij = <g_i, v_j>.

Gauss-Legendre. The integrand's poles lie at t = (log m + pi i) / gap, gap a difference of two logits, m a number of
keys: the number of nodes follows from the largest range of a row. `mean` is taken as pattern - J s, so that the output
is reproduced to rounding; its own quadrature has to agree. (Agreement alone would not do: where p is saturated at every
node, pattern = mean and J = 0 agree as well.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .pieces import pieces

_WANTED = {torch.float64: 1e-13}  # of the quadrature; in float32
_WANTED_FLOAT32 = 1e-7
_ACCEPTED = {torch.float64: 1e-10}
_ACCEPTED_FLOAT32 = 1e-5
_UNSEEN = 1e5  # a logit that far below the largest of its row is a mask written as a number
_MASKED = -1e30  # its exponential is zero at every node, and zero times it is zero
_MOST_NODES = 1024


@dataclass(frozen=True)
class SoftmaxPath:
    """Integrals over t of softmax(t * logits), rows without a visible key being zero.

    Attributes:
        logits: real logits less the largest of their row, -1e30 where masked.
        mean: int p dt, [b h q k]; rows sum to 1.
        ramp: int t p dt.
        nodes, weights: of the quadrature on [0, 1].
        error: largest difference of `mean` from its own quadrature.
        last: one more than the last key that each query sees in any text and head.
    """

    logits: Float[Tensor, "b h q k"]
    mean: Float[Tensor, "b h q k"]
    ramp: Float[Tensor, "b h q k"]
    nodes: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    error: float
    last: tuple[int, ...]

    @property
    def pattern(self) -> Float[Tensor, "b h q k"]:
        """softmax(logits)."""
        return _softmax(self.logits)

    def from_query(self, first: int) -> "SoftmaxPath":
        """That of the queries from one on."""
        logits, mean, ramp = (plane[:, :, first:] for plane in (self.logits, self.mean, self.ramp))
        return replace(self, logits=logits, mean=mean, ramp=ramp, last=self.last[first:])

    def spread(self, w: Float[Tensor, "*s b h q k"]) -> Float[Tensor, "*s b h q k"]:
        """(J w)_ik: of logits' changes, what they do to the pattern; of its credits, those of the logits."""
        found = self.ramp * w
        flat, into = w.reshape(-1, *w.shape[-4:]), found.view(-1, *w.shape[-4:])
        for queries, keys, e in _along(self.logits, self.nodes, self.last):
            moved = rearrange(flat[..., queries, keys], "s b h q k -> b h q s k")
            along = (moved @ e.mT).mT * _over_sums(e, self.nodes * self.weights, power=2)
            into[..., queries, keys] -= rearrange(along.mT @ e, "b h q s k -> s b h q k")
        return found


def softmax_path(logits: Float[Tensor, "b h q k"]) -> SoftmaxPath:
    """The path of real logits, -inf where masked; a logit 1e5 below its row's largest counts as masked.

    Nodes are added until `error` is below 1e-10 (float64), 1e-5 (float32), at most 1024 of them: see `error`.
    """
    largest = logits.amax(-1, keepdim=True)
    shifted = logits - largest.masked_fill(largest == -math.inf, 0.0)
    masked = ~(shifted > -_UNSEEN)
    span = float(-shifted.masked_fill(masked, 0.0).min()) if logits.numel() else 0.0
    shifted.masked_fill_(masked, _MASKED)
    last = _last(shifted)
    count = nodes_needed(span, logits.shape[-1], _WANTED.get(logits.dtype, _WANTED_FLOAT32))
    while True:
        path = _integrated(shifted, last, min(count, _MOST_NODES))
        if path.error <= _ACCEPTED.get(logits.dtype, _ACCEPTED_FLOAT32) or count >= _MOST_NODES:
            return path
        count = count * 3 // 2


def nodes_needed(span: float, keys: int, tolerance: float) -> int:
    """Gauss-Legendre nodes for rows of logits that span this much: from the Bernstein ellipse of the nearest pole."""
    if not span > 0:
        return 2
    z = -1 + 2 * complex(math.log(keys), math.pi) / span
    root = np.sqrt(z * z - 1)
    rho = max(abs(z + root), abs(z - root))
    return min(math.ceil(-math.log(tolerance) / (2 * math.log(rho)) * 1.1) + 2, _MOST_NODES)


def _integrated(shifted: Tensor, last: tuple[int, ...], count: int) -> SoftmaxPath:
    nodes, weights = _legendre(count, shifted.device, shifted.dtype)
    rest, ramp = _softmax(shifted), torch.zeros_like(shifted)
    errors = [shifted.new_zeros(())]
    for queries, keys, e in _along(shifted, nodes, last):
        per_node = _over_sums(e, weights)
        ramped = per_node * nodes[:, None]
        along = (shifted[..., queries, None, keys] @ e.mT).mT * ramped * per_node / weights[:, None]
        mean, slope, inner = (torch.cat([per_node, ramped, along], -1).mT @ e).unbind(-2)
        here = rest[..., queries, keys]  # the pattern, whose keys beyond are 0, as are those of `ramp`
        here -= slope * shifted[..., queries, keys] - inner
        ramp[..., queries, keys] = slope
        errors.append((mean - here).abs().amax())
    return SoftmaxPath(shifted, rest, ramp, nodes, weights, float(torch.stack(errors).amax()), last)


def _last(shifted: Tensor) -> tuple[int, ...]:
    seen = (shifted > _MASKED).flatten(0, 1).any(0)
    return tuple((seen * torch.arange(1, shifted.shape[-1] + 1, device=seen.device)).amax(-1).tolist())


def _along(shifted: Tensor, nodes: Tensor, last: tuple[int, ...]) -> Iterator[tuple[slice, slice, Tensor]]:
    """exp(t * logits) at all nodes, [b h q n k], for some queries at a time and the keys that any of them sees."""
    *outer, n_queries, n_keys = shifted.shape
    height = max(1, pieces(shifted.device).nodes // max(1, math.prod(outer) * n_keys * len(nodes)))
    scaled = nodes[:, None] / math.log(2)  # exp2 is not slowed down by what underflows
    for first in range(0, n_queries, height):
        queries = slice(first, min(first + height, n_queries))
        keys = slice(0, max(1, *last[queries], 1))
        yield queries, keys, (shifted[..., queries, None, keys] * scaled).exp2_()


def _over_sums(e: Tensor, weights: Tensor, power: int = 1) -> Tensor:
    """weights / (sum of e)^power, [b h q n 1]; no row that sees a key sums to less than 1."""
    return weights[:, None] / e.sum(-1, keepdim=True).clamp_min(1.0) ** power


def _softmax(shifted: Tensor) -> Tensor:
    e = shifted.exp()
    return e.div_(e.sum(-1, keepdim=True).clamp_min_(1.0))


@lru_cache(maxsize=64)
def _legendre(count: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    found = torch.from_numpy(np.stack([(nodes + 1) / 2, weights / 2])).to(device, dtype)
    return found[0], found[1]
