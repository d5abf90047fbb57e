"""From source vectors to their norms, [batch query key].

Head mixtures take the factors of `factors` (no vectors at all); terms with neurons are formed a few keys at a time, in
pieces sized from a memory budget, so that the result does not depend on it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import MemoryBudgetError
from ..carry.pairs import CrossSources, Sources
from ..carry.terms import KeyBlocks, Mixture, Neurons, Product, Term
from ..pieces import free_memory, pieces
from . import factors, formed
from .factors import Factors
from .formed import Plain
from .spots import Spots

Side = Sources | CrossSources  # keys of one sequence


@dataclass
class Shared:
    """What the scopes of one block have in common.

    `attn` and `attn_res` differ on the diagonal only; vectors formed for one of the `family` serve all of it.
    """

    family: tuple[Side, ...] = ()
    factors: dict[int, Factors] = field(default_factory=dict)
    head_norms: dict[int, Tensor] = field(default_factory=dict)
    lengths: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    spots: dict[tuple[int, ...], Spots] = field(default_factory=dict)
    plain: dict[int, Plain] = field(default_factory=dict)
    cross: "Shared | None" = None  # the same for the keys of another sequence

    @classmethod
    def of(cls, family: tuple[Sources, ...]) -> "Shared":
        cross = tuple(sources.cross for sources in family if sources.cross is not None)
        return cls(family, cross=cls(cross) if cross else None)

    def norms_of_heads(self, mixture: Mixture, causal: bool) -> Float[Tensor, "b h k"]:
        """The norms of what the heads would send, from the vectors that the triangles are made of."""
        if mixture.few:
            self.plain_of(mixture, causal)
            return self.head_norms[id(mixture.sent)]
        self.factors_of(mixture, causal)
        return self.head_norms[id(mixture)]

    def plain_of(self, mixture: Mixture, causal: bool) -> Plain:
        """What the norms of all images of a mixture of few pairs are compared with."""
        if id(mixture.sent) not in self.plain:
            heads, made = formed.plain(mixture, causal)
            self.head_norms[id(mixture.sent)], self.plain[id(mixture.sent)] = heads, made
        return self.plain[id(mixture.sent)]

    def factors_of(self, mixture: Mixture, causal: bool) -> Factors:
        if id(mixture) not in self.factors:
            images = [s for s in self.family if s.image is not None and _only(s) and _only(s.image.of) is mixture]
            functions = [s.image.function for s in images if s.image is not None]
            self.head_norms[id(mixture)], made = factors.factored(mixture, causal, functions)
            self.factors[id(mixture)] = made[0]
            self.factors |= {id(_only(s)): factor for s, factor in zip(images, made[1:], strict=True)}
        return self.factors[id(mixture)]


def source_norms(
    sources: Sources, *, max_memory: int | None, shared: Shared | None = None, sketch: int | None = None
) -> Float[Tensor, "b q k"]:
    """|v_ij|, the keys of another sequence last, those of the own past first.

    Where vectors have to be formed they take up to max_memory bytes at a time, None for half of what is free; there,
    with `sketch`, norms are estimates, except on the diagonal. What comes from a mixture is compared here.

    Raises:
        DecompositionError: a norm is not that of a vector formed on its own. MemoryBudgetError.
    """
    shared = shared or Shared.of((sources,))
    lengths = _side_norms(sources, shared, max_memory, sketch).clone()
    lengths.diagonal(dim1=-2, dim2=-1).copy_(sources.sizes[1])
    _compare(sources, shared, lengths)
    if sources.cross is None or shared.cross is None:
        return lengths
    across = _side_norms(sources.cross, shared.cross, max_memory, sketch)
    _compare(sources.cross, shared.cross, across)
    return sources.in_order(lengths, across, dim=-1)


def _compare(sources: Side, shared: Shared, lengths: Float[Tensor, "b q k"]) -> None:
    spots = shared.spots.get(_key(sources))
    if spots is not None:
        spots.compare(lengths, "the norms of pairs")


def _side_norms(sources: Side, shared: Shared, max_memory: int | None, sketch: int | None) -> Tensor:
    """|v_ij| for the keys of one sequence, [b q k]; the diagonal is not valid."""
    key = _key(sources)
    if key not in shared.lengths:
        if not sources.terms:
            shared.lengths[key] = _nothing(sources)
        elif (mixture := _only(sources)) is not None:
            if mixture.few:
                found = formed.mixture_norms(mixture, shared.plain_of(mixture, sources.causal))
            else:
                factor = shared.factors_of(mixture, sources.causal)
                found = factors.mixture_norms(mixture, factor, causal=sources.causal)
            shared.lengths[key], shared.spots[key] = found
        else:
            family = shared.family if any(member is sources for member in shared.family) else (sources,)
            chosen = {_key(member): member for member in family if needs_vectors(member) or member is sources}
            members = tuple(chosen.values())
            if sketch is None or not needs_vectors(sources):
                found = _pairwise_norms(members, max_memory)
            else:
                found = _sketched_norms(members, max_memory, sketch)
            shared.lengths |= zip(chosen, found, strict=True)
    return shared.lengths[key]


def _nothing(sources: Side) -> Tensor:
    """No source but the own one."""
    n_batch, n_queries, _ = sources.like.shape
    return sources.like.new_zeros(n_batch, n_queries, n_queries)


def _only(sources: Side) -> Mixture | None:
    """The mixture that is all there is of these sources, if it is one."""
    term = sources.terms[0] if len(sources.terms) == 1 else None
    return term if isinstance(term, Mixture) else None


def _key(sources: Side) -> tuple[int, ...]:
    return tuple(id(term) for term in sources.terms)


def needs_vectors(sources: Side) -> bool:
    """Whether lengths cost a vector per pair: no factor serves once neurons are involved."""
    return any(isinstance(term, Neurons) for term in sources.terms)


def _sketched_norms(family: tuple[Side, ...], max_memory: int | None, size: int) -> list[Tensor]:
    """|v_ij| from `size` random projections of the last axis: |v S| / c is unbiased, S gaussian, c its mean length."""
    generator = torch.Generator().manual_seed(size)
    like, width = family[0].like, family[0].terms[0].width
    directions = torch.randn(width, size, generator=generator, dtype=torch.float64).to(like)
    projected = {id(t): t.mapped(Product(directions)) for sources in family for t in sources.terms}
    family = tuple(replace(s, terms=tuple(projected[id(t)] for t in s.terms), image=None) for s in family)
    return [lengths / _mean_length(size) for lengths in _pairwise_norms(family, max_memory)]


def sketch_standard_error(size: int) -> float:
    """Standard deviation of the estimate over the true length: about 1 / sqrt(2 size)."""
    return math.sqrt(size / _mean_length(size) ** 2 - 1)


def _mean_length(size: int) -> float:
    """Mean length of a standard gaussian vector in `size` dimensions (the chi distribution's mean)."""
    return math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))


def _pairwise_norms(family: tuple[Side, ...], max_memory: int | None) -> list[Tensor]:
    """|v_ij| of every member, by forming the vectors of a few keys for all queries that see them."""
    like = family[0].like
    n_batch, n, _ = like.shape
    n_keys = family[0].terms[0].n_keys
    causal = all(sources.causal for sources in family)
    at_once = pairs_at_once(family, max_memory, like.element_size())
    fewest = pieces(like.device).pairs[0]
    blocks = KeyBlocks(keys_at_once(family, at_once, max_memory, like.element_size()))
    out = [like.new_zeros(n_batch, n, n_keys) for _ in family]
    rows = min(n, at_once)
    for b in range(n_batch):
        first_key = 0
        while first_key < n_keys:
            seen = n - first_key if causal else n  # queries that see the first of these keys
            columns = max(1, at_once // min(seen, rows))
            if causal:  # pairs above the diagonal are waste, but so is a product of few
                columns = min(columns, max(seen // 8, fewest // seen, 1))
            keys = slice(first_key, min(first_key + columns, n_keys))
            for first in range(first_key if causal else 0, n, rows):
                queries = slice(first, min(first + rows, n))
                for lengths, found in zip(out, _lengths(family, b, queries, keys, blocks), strict=True):
                    lengths[b, queries, keys] = found.T
            first_key = keys.stop
    return [lengths.tril_() for lengths in out] if causal else out


def _lengths(family: tuple[Side, ...], batch: int, queries: slice, keys: slice, blocks: KeyBlocks) -> Iterator[Tensor]:
    """[k q] for every member; each goes on from the vectors of the one before it where it can."""
    before, vectors = None, torch.empty(0)
    hidden: dict[int, Tensor] = {}

    def form(term: Mixture | Neurons) -> Tensor:
        if isinstance(term, Mixture):
            return term.pairs(batch, queries, keys, blocks)
        neurons = id(term.hidden)
        if neurons not in hidden:
            hidden[neurons] = term.hidden.pairs(batch, queries, keys, blocks)
        return term.pairs(batch, queries, keys, blocks, hidden[neurons])

    for sources in family:
        missing = sources.terms
        if before is not None and sources.image is not None and sources.image.of is before:
            vectors, missing = sources.image(vectors, batch, queries), ()
        elif before is not None and _key(before) == _key(sources)[: len(before.terms)]:
            missing = missing[len(before.terms) :]
        else:
            vectors, missing = form(missing[0]), missing[1:]
        for term in missing:
            vectors += form(term)
        yield vectors.norm(dim=-1)
        before = sources


def pairs_at_once(family: tuple[Side, ...], max_memory: int | None, element_size: int) -> int:
    per_pair = element_size * max(sum(_width(term) for term in sources.terms) for sources in family)
    fixed = element_size * max(sum(_weights(term) for term in sources.terms) for sources in family)
    if max_memory is None:
        max_memory = free_memory(family[0].like.device)
    if max_memory < fixed + per_pair:
        raise MemoryBudgetError(
            f"max_memory is {max_memory} bytes, but one pair of this block needs {fixed + per_pair} "
            f"({fixed} of them for its combined weights). Pass max_memory={fixed + 1024 * per_pair} or more."
        )
    sizes = pieces(family[0].like.device)
    best = min(max(sizes.pair_vectors // per_pair, sizes.pairs[0]), sizes.pairs[1])
    return int(max(1, min(best, (max_memory - fixed) // per_pair)))


def keys_at_once(family: tuple[Side, ...], pairs: int, max_memory: int | None, element_size: int) -> int:
    """Keys whose head vectors are formed together, beside so many pairs; one where the budget has no room for more."""
    mixtures = {id(t): t for sources in family for term in sources.terms for t in _mixtures(term)}
    per_key = element_size * sum(t.weight.shape[0] * t.width for t in mixtures.values())
    room = pieces(family[0].like.device).pair_vectors
    if max_memory is not None:
        per_pair = element_size * max(sum(_width(term) for term in sources.terms) for sources in family)
        fixed = element_size * max(sum(_weights(term) for term in sources.terms) for sources in family)
        room = min(room, max_memory - fixed - pairs * per_pair)
    return max(1, room // per_key) if per_key else 1


def _mixtures(term: Term) -> Iterator[Mixture]:
    if isinstance(term, Mixture):
        yield term
    elif isinstance(term, Neurons):
        for terms in term.hidden.inputs:
            for one in terms:
                yield from _mixtures(one)


def _width(term: Term) -> int:
    """Numbers that are alive for one pair while the term is formed."""
    inputs = term.hidden.inputs if isinstance(term, Neurons) else ()
    return 2 * term.width + sum(_width(t) for terms in inputs for t in terms)


def _weights(term: Term) -> int:
    """Numbers that exist only for this term: the heads seen through W_in."""
    inputs = term.hidden.inputs if isinstance(term, Neurons) else ()
    return sum(_own(t) + _weights(t) for terms in inputs for t in terms)


def _own(term: Term) -> int:
    return term.weight.numel() if isinstance(term, Mixture | Neurons) else term.vectors.numel()
