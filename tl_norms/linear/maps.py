"""From source vectors to their lengths, [batch query key].

Head mixtures take the factor of `factors` (no vectors at all); terms with neurons are formed a few keys at a time, in
pieces sized from a memory budget, so that the result does not depend on it.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from . import factors
from .sources import Mixture, Neurons, Sources, Terms, pairs

_PAIRS = 4096  # more pairs at a time do not make the matrix products faster


@dataclass
class Shared:
    """What the scopes of one block have in common: `attn` and `attn_res` differ on the diagonal only."""

    triangles: dict[int, Tensor] = field(default_factory=dict)
    lengths: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def triangle(self, mixture: Mixture) -> Tensor:
        if id(mixture) not in self.triangles:
            self.triangles[id(mixture)] = factors.triangles(mixture)
        return self.triangles[id(mixture)]


def source_norms(
    sources: Sources, *, max_memory: int, shared: Shared | None = None, sketch: int | None = None
) -> Tensor:
    """|v_ij|, [b q k]; with `sketch`, an estimate for j != i where vectors would have to be formed."""
    shared = shared or Shared()
    key = tuple(id(term) for term in sources.terms)
    if key not in shared.lengths:
        if sketch is not None and needs_vectors(sources):
            shared.lengths[key] = _sketched_norms(sources, max_memory, sketch)
        else:
            shared.lengths[key] = _term_norms(sources, max_memory, shared)
    lengths = shared.lengths[key].clone()
    lengths.diagonal(dim1=-2, dim2=-1).copy_(sources.own.norm(dim=-1))
    return lengths


def needs_vectors(sources: Sources) -> bool:
    """Whether lengths cost a vector per pair: no factor serves once neurons are involved."""
    return any(isinstance(term, Neurons) for term in sources.terms)


def _sketched_norms(sources: Sources, max_memory: int, size: int) -> Tensor:
    """|v_ij| from `size` random projections of the last axis: |v S| / c is unbiased, S gaussian, c its mean length."""
    generator = torch.Generator().manual_seed(size)
    directions = torch.randn(sources.own.shape[-1], size, generator=generator, dtype=torch.float64).to(sources.own)
    terms = tuple(term.mapped(lambda weight: weight @ directions) for term in sources.terms)
    return _term_norms(replace(sources, terms=terms), max_memory, Shared()) / _mean_length(size)


def sketch_standard_error(size: int) -> float:
    """Standard deviation of the estimate over the true length: about 1 / sqrt(2 size)."""
    return math.sqrt(size / _mean_length(size) ** 2 - 1)


def _mean_length(size: int) -> float:
    """Mean length of a standard gaussian vector in `size` dimensions (the chi distribution's mean)."""
    return math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))


def _term_norms(sources: Sources, max_memory: int, shared: Shared) -> Tensor:
    if len(sources.terms) == 1 and isinstance(sources.terms[0], Mixture):
        mixture = sources.terms[0]
        return factors.mixture_norms(mixture, shared.triangle(mixture), causal=sources.causal)
    n_batch, n_queries, _ = sources.own.shape
    out = sources.own.new_zeros(n_batch, n_queries, n_queries)
    if sources.terms:
        for b in range(n_batch):
            _fill_pairwise(out[b], sources, b, max_memory)
    return out


def _fill_pairwise(out: Tensor, sources: Sources, batch: int, max_memory: int) -> None:
    """|v_ij| by forming the vectors of a few keys for all queries that see them."""
    n = out.shape[0]
    at_once = _pairs_at_once(sources.terms, max_memory, out.element_size())
    rows = min(n, at_once)
    columns = max(1, at_once // n)
    for first_key in range(0, n, columns):
        keys = slice(first_key, min(first_key + columns, n))
        for first in range(first_key if sources.causal else 0, n, rows):
            queries = slice(first, min(first + rows, n))
            out[queries, keys] = pairs(sources.terms, batch, queries, keys).norm(dim=-1).T
    if sources.causal:
        out.tril_()


def _pairs_at_once(terms: Terms, max_memory: int, element_size: int) -> int:
    per_pair = element_size * sum(_width(term) for term in terms)
    fixed = element_size * sum(_weights(term) for term in terms)
    if max_memory < fixed + per_pair:
        raise MemoryBudgetError(
            f"max_memory is {max_memory} bytes, but one pair of this block needs {fixed + per_pair} "
            f"({fixed} of them for its combined weights). Pass max_memory={fixed + 1024 * per_pair} or more."
        )
    return int(max(1, min(_PAIRS, (max_memory - fixed) // per_pair)))


def _width(term: Mixture | Neurons) -> int:
    """Numbers that are alive for one pair while the term is formed."""
    own = 2 * term.weight.shape[-1]
    return own if isinstance(term, Mixture) else own + sum(_width(t) for terms in term.inputs for t in terms)


def _weights(term: Mixture | Neurons) -> int:
    """Numbers in weights that exist only for this term: the heads seen through W_in."""
    if isinstance(term, Mixture):
        return 0
    return sum(t.weight.numel() + _weights(t) for terms in term.inputs for t in terms)


def free_memory(device: torch.device) -> int:
    """Half of the memory that is free now, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024 // 2
    except (OSError, StopIteration):
        return 1 << 30
