"""From source vectors to any measure of them, [batch query key], directions last where it has several.

What is linear in the vectors (`share`, `Onto`) takes a covector per query, carried back through each term to the values
of its heads: no vector of a pair is formed. L1 and ALTI form the vectors of a few keys and queries at a time. Lengths
have ways of their own, see `lengths`.

Axes: b batch, q query, k key, d d_model (or any width in between), r direction.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..carry.pairs import CrossSources, Sources
from ..carry.terms import Heads, Mixture, Neurons, Term, pairs
from .lengths import pairs_at_once, source_norms
from .measures import Length, Measure, mixture_onto, mixture_toward
from .spots import agree, ratio_again


def source_values(sources: Sources, measure: Measure, *, max_memory: int | None) -> Float[Tensor, "b q k *r"]:
    """The measure of every v_ij, the keys of another sequence last; vectors that are formed fit into `max_memory`."""
    if isinstance(measure, Length):
        return source_norms(sources, max_memory=max_memory)
    total = sources.total
    covectors = measure.covectors(total)
    sides: list[Tensor] = []
    for side in (sources, sources.cross):
        if side is None:
            continue
        if covectors is None:
            sides.append(_formed(side, measure, total, max_memory))
        elif covectors.ndim == total.ndim - 1:  # the same directions for every query
            sides.append(_onto(side, covectors))
        else:
            sides.append(_toward(side, covectors[..., 0, :]))
    own = measure.of(sources.own, total)
    n = own.shape[1]
    numbers = torch.arange(n, device=own.device)
    sides[0][:, numbers, numbers] = own
    return sides[0] if len(sides) == 1 else sources.in_order(*sides, dim=2)


def check_sum(
    sources: Sources, measure: Measure, values: Float[Tensor, "b q k *r"], rest: Float[Tensor, "b q *r"], what: str
) -> None:
    """Raise a DecompositionError unless values and the remainder's add up, if the measure is linear in the vectors.

    Shares add up to 1, numbers onto a direction to that of the whole activation.
    """
    total = sources.total
    covectors = measure.covectors(total)
    if covectors is None:
        return
    length = covectors.norm(dim=-1)  # [r], or [b q 1]
    parts = torch.stack([part.norm(dim=-1) for part in (sources.others, sources.own, sources.rest)]).sum(0)
    size = parts[..., None] * length
    size = size if values.ndim == 4 else size[..., 0]
    agree(
        values.sum(2) + rest,
        measure.of(total, total),
        size + values.abs().sum(2) + rest.abs(),
        f"{what}: the sums of all sources and of the remainder",
    )


def compare_own(
    sources: Sources, measure: Measure, values: Float[Tensor, "b q k *r"], rest: Float[Tensor, "b q *r"], what: str
) -> None:
    """Raise a DecompositionError unless diagonal and remainder are the measures of own vectors and of `rest`."""
    numbers = torch.arange(values.shape[1], device=values.device)
    found = torch.stack([values[:, numbers, numbers + sources.past], rest])
    again = torch.stack([measure.of(one, sources.total) for one in (sources.own, sources.rest)])
    lengths = torch.stack([torch.linalg.vector_norm(one, dim=-1) for one in (sources.own, sources.rest)])
    agree(found, again, measure.sizes(lengths, sources.total), f"{what}: the diagonal and the remainder")


def compare_ratios(
    sources: Sources, ratio: Float[Tensor, "b q"], shares: Float[Tensor, "3 b q"] | None, what: str
) -> None:
    """Raise a DecompositionError unless mixing ratios, and shares, are those of the sums over sources."""
    others, own = (torch.linalg.vector_norm(one, dim=-1) for one in (sources.others, sources.own))
    found, again = ratio[None], ratio_again(others, own)[None]
    if shares is not None:
        cross = torch.zeros_like(own) if sources.cross is None else sources.cross.others.norm(dim=-1)
        parts = torch.stack([own, sources.context.norm(dim=-1), cross])
        whole = parts.sum(0).clamp_min(torch.finfo(ratio.dtype).tiny)
        found, again = torch.cat([found, shares]), torch.cat([again, parts / whole])
    agree(found, again, again, f"{what}: mixing ratios")


def _empty(side: Sources | CrossSources, *more: int) -> Tensor:
    like = side.like
    n_keys = side.terms[0].n_keys if side.terms else like.shape[1]
    return like.new_zeros(*like.shape[:2], n_keys, *more)


def _toward(side: Sources | CrossSources, covectors: Float[Tensor, "b q d"]) -> Float[Tensor, "b q k"]:
    """<v_ij, c_i> for j != i."""
    found = _empty(side)
    for term in side.terms:
        found += _term_toward(term, covectors)
    return found


def _onto(side: Sources | CrossSources, directions: Float[Tensor, "r d"]) -> Float[Tensor, "b q k r"]:
    """<v_ij, u_r> for j != i."""
    found = _empty(side, len(directions))
    for term in side.terms:
        if isinstance(term, Mixture):
            found += mixture_onto(term.pattern, term.values, term.weight, directions, term.scale)
            continue
        for number, direction in enumerate(directions):
            found[..., number] += _term_toward(term, direction.expand_as(side.like))
    return found


def _term_toward(term: Term, covectors: Float[Tensor, "b q d"]) -> Float[Tensor, "b q k"]:
    if isinstance(term, Mixture):
        return mixture_toward(term.pattern, term.values, term.weight, covectors, term.scale)
    covectors = covectors if term.scale is None else covectors * term.scale[..., None]
    if isinstance(term, Heads):
        found = torch.zeros_like(term.pattern[:, 0])
        for head in range(term.pattern.shape[1]):
            found.addcmul_(term.pattern[:, head], covectors @ term.vectors[:, head].transpose(1, 2))
        return found
    return _neurons_toward(term, covectors)


def _neurons_toward(term: Neurons, covectors: Float[Tensor, "b q d"]) -> Float[Tensor, "b q k"]:
    """The covector at every branch of the hidden layer, then through its terms."""
    hidden = covectors @ term.weight.T
    found: Tensor | None = None
    for terms, coefficient in zip(term.hidden.inputs, term.hidden.coefficients, strict=True):
        if term.hidden.rows is None:
            at_branch = hidden * coefficient
        else:
            sent = term.hidden.rows >= 0
            at_branch = torch.zeros_like(hidden)
            at_branch[sent] = hidden[sent] * coefficient[term.hidden.rows[sent]]
        for one in terms:
            share = _term_toward(one, at_branch)
            found = share if found is None else found + share
    if found is None:
        raise ValueError("a hidden layer needs at least one branch")
    return found


def _formed(
    side: Sources | CrossSources, measure: Measure, total: Float[Tensor, "b q d"], max_memory: int | None
) -> Float[Tensor, "b q k"]:
    """The measure of vectors formed a few keys and queries at a time."""
    found = _empty(side)
    if not side.terms:
        return found
    n_queries, n_keys = found.shape[1:]
    at_once = pairs_at_once((side,), max_memory, found.element_size())
    rows = min(n_queries, at_once)
    columns = max(1, at_once // rows)
    for b in range(len(found)):
        for first_key in range(0, n_keys, columns):
            keys = slice(first_key, min(first_key + columns, n_keys))
            for first in range(first_key if side.causal else 0, n_queries, rows):
                queries = slice(first, min(first + rows, n_queries))
                vectors = pairs(side.terms, b, queries, keys)
                found[b, queries, keys] = measure.of(vectors, total[b, queries]).T
    return found.tril_() if side.causal else found
