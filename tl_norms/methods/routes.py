"""Information flow routes: shares of heads, bypass and feed-forward at every sum, and the graph of the large ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .. import composition
from ..blocks.activations import check_cache, check_whole_run
from ..blocks.structure import Add, Attention, Block, CrossAttention, FeedForward, Norm
from ..complete import Completed, completed
from ..errors import UnknownOptionError, UnknownPositionError, UnsupportedArchitectureError
from ..freeze import FrozenBlock
from ..linear.carry.pairs import Multiple
from ..linear.carry.terms import Hidden, MixedHeads, Mixture, Neurons, Sent, Term, pairs
from ..linear.measure.measures import nearer
from ..linear.pieces import pieces
from ..plan import Plan, chain_of, reader_of
from ..storage.storable import Storable
from .results import names_of, unattended

Kind = Literal["attention", "bypass", "feed-forward", "bypass of the feed-forward"]


@dataclass(frozen=True)
class FlowEdge:
    """One edge of the graph, from position `key` below to position `query` above; `weight` in 0..1."""

    kind: Kind
    layer: int
    text: int
    query: int
    key: int
    weight: float


@dataclass(frozen=True, repr=False, eq=False)
class InformationFlow(Storable):
    """Shares at every sum of every layer, and the graph that leads to one position.

    Attributes:
        layers: the layer numbers along the first axis
        heads: share of each head and source at the first sum, [layer *batch head query key]
        bypass: share of the skip connection there, [layer *batch query]
        ffn: share of the feed-forward at its own sum, [layer *batch query]
        maps: heads together, and on the diagonal what stays at a position, [layer *batch query key]
        rollout: their products up to and including each layer
        edges: the graph, from the target down: edges of at least `threshold` that are reached by such edges
        position: the target's position
        threshold: edges below it are not followed
        part_threshold: shares below it were set to 0 before the others were brought to sum 1
        unattended: layers without attention, left out as if nothing moved there, with how long what they write is
            relative to the stream (nan if the cache does not tell)
        token_strings, model_name: for tables and pictures
    """

    layers: tuple[int, ...]
    heads: Float[Tensor, "layer *batch head query key"]
    bypass: Float[Tensor, "layer *batch query"]
    ffn: Float[Tensor, "layer *batch query"]
    maps: Float[Tensor, "layer *batch query key"]
    rollout: Float[Tensor, "layer *batch query key"]
    edges: tuple[FlowEdge, ...]
    position: int
    threshold: float
    part_threshold: float
    unattended: dict[int, float] = field(default_factory=dict)
    token_strings: tuple[tuple[str, ...], ...] | None = None
    model_name: str = ""

    def __repr__(self) -> str:
        return (
            f"InformationFlow(maps and rollout {list(self.maps.shape)}, {len(self.edges)} edges of at least "
            f"{self.threshold:g} to position {self.position})"
        )


@torch.no_grad()
def information_flow(
    cache,
    position: int = -1,
    *,
    threshold: float = 0.04,
    part_threshold: float = 0.0,
    floor: float = 1e-5,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
) -> InformationFlow:
    """Information flow routes (Ferrando & Voita 2024): what makes up each sum, and the graph of what is large.

    A sum y (stream plus attention; stream plus feed-forward; all three in parallel blocks) has parts: every head's
    a^h_ij v^h_j W_O, the feed-forward, the bypass. share(part) = max(floor, ‖y‖₁ - ‖y - part‖₁), divided by the sum of
    all parts. Norms after a branch are held. Biases are no part, and shares of layers multiply as if positions were
    all that matters: nothing adds up to an activation. With the authors' floor even a source that is not attended to
    has a share, of about floor / ‖y‖₁.

    Args:
        cache: an ActivationCache
        position: the target's position, above the last layer
        threshold: edges below it are not followed when the graph is searched from the target down
        part_threshold: shares below it are set to 0, and the rest brought to sum 1, before anything else. Thresholds
            before and after renormalising give different graphs; the authors' searches use the latter alone
        floor: the least that a part counts
        mask, source_mask, stack: as for `block_norms`; of a decoder, shares of the encoder's tokens leave the maps, so
            that rows sum to less than 1

    Returns:
        InformationFlow: `edges`, `maps`, `rollout`, `heads`, `bypass`, `ffn`.

    Raises:
        UnknownPositionError: there is no such position.
        UnknownOptionError: a threshold or floor outside 0..1.
        UnsupportedArchitectureError: a block whose sums are not understood. Otherwise as `block_norms`.

    Example:
        >>> tl_norms.methods.information_flow(cache).edges                      # doctest: +SKIP
    """
    check_cache(cache)
    for name, value in (("threshold", threshold), ("part_threshold", part_threshold), ("floor", floor)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UnknownOptionError(f"{name} is {value!r}; expected a number from 0 to 1, such as 0.04.")
    chain = chain_of(reader_of(cache.model, stack))
    plan, activations = Plan.of_cache(cache, chain, mask=mask, source_mask=source_mask, stack=stack)
    check_whole_run(plan.reader, activations)
    found = []
    for block in plan.blocks:
        frozen = FrozenBlock(plan.reader, activations, block)
        made = {one.point: one for one in completed(frozen, plan.scopes)}
        found.append(_layer(frozen, made, floor, part_threshold))
    heads, bypass, ffn, maps = (
        torch.stack([row.to(found[0][0].device) for row in rows]) for rows in zip(*found, strict=True)
    )
    layers, n = tuple(block.layer for block in plan.blocks), maps.shape[-1]
    target = _position(position, n)
    alone = [all(len({"attention", "feed-forward"} & {p.what for p in parts}) < 2 for _, parts in _sums(block))
             for block in plan.blocks]  # fmt: skip
    edges = tuple(_edges(layers, target, threshold, heads, bypass, ffn, alone))
    if not activations.has_batch:
        heads, bypass, ffn, maps = heads[:, 0], bypass[:, 0], ffn[:, 0], maps[:, 0]
    rollout = composition.rollout(maps)
    names = names_of(plan, activations, found[0][3].shape)
    left_out = unattended(cache, mask, stack)
    return InformationFlow(
        layers, heads, bypass, ffn, maps, rollout, edges, target, threshold, part_threshold, left_out, *names
    )


def _position(position: Any, n: int) -> int:
    if isinstance(position, bool) or not isinstance(position, int) or not -n <= position < n:
        raise UnknownPositionError(f"there is no position {position!r}: this run has positions 0 to {n - 1}.")
    return position % n


@dataclass(frozen=True)
class _Part:
    """One summand of a sum: `what` it is, the point that it is, and its factor."""

    what: Literal["bypass", "attention", "cross", "feed-forward"]
    point: int
    factor: float


def _sums(block: Block) -> list[tuple[int, list[_Part]]]:
    """The sums with a bypass, and their parts; sums of branches alone are taken apart."""
    sums: dict[int, list[_Part]] = {}

    def parts(point: int, factor: float) -> list[_Part]:
        base = point
        while base and isinstance(block.steps[base - 1].operation, Norm):
            base = block.steps[base - 1].reads
        operation = None if not base else block.steps[base - 1].operation
        if operation is None or base in sums:
            return [_Part("bypass", point, factor)]
        if isinstance(operation, CrossAttention):
            return [_Part("cross", point, factor)]
        if isinstance(operation, Attention):
            return [_Part("attention", point, factor)]
        if isinstance(operation, FeedForward):
            return [_Part("feed-forward", point, factor)]
        if isinstance(operation, Add) and base == point:
            step = block.steps[base - 1]
            return parts(step.reads, factor * operation.scale) + parts(operation.other, factor * operation.other_scale)
        raise UnsupportedArchitectureError(
            f"layer {block.layer}: a norm of a sum of branches has no parts that are known one by one. "
            f"tl_norms.block_norms(cache) reads this model."
        )

    for number, step in enumerate(block.steps, start=1):
        if isinstance(step.operation, Add):
            operation = step.operation
            found = parts(step.reads, operation.scale) + parts(operation.other, operation.other_scale)
            if any(part.what == "bypass" for part in found):
                sums[number] = found
    return list(sums.items())


def _layer(
    frozen: FrozenBlock, made: dict[int, Completed], floor: float, part_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shares of heads [b h q k], of the bypass [b q], of the feed-forward [b q], and the map [b q k]."""
    heads = bypass = ffn = own = None
    stays: Tensor | None = None  # what other sums leave at a position
    for number, parts in _sums(frozen.block):
        y = frozen.real(number)
        shares: dict[str, Tensor] = {}
        for part in parts:
            if part.what in ("attention", "cross"):
                if part.point not in made:
                    raise UnsupportedArchitectureError(
                        f"layer {frozen.block.layer}: attention has no scope of its own."
                    )
                found = _head_shares(made[part.point], part, y)
            else:
                found = nearer(frozen.real(part.point) * part.factor, y)[:, None, :, None]
            shares[part.what] = found.double().clamp_min(floor)
        shares = _normalized(shares, part_threshold)
        stay = torch.stack([shares[name][:, 0, :, 0] for name in ("bypass", "feed-forward") if name in shares]).sum(0)
        if "attention" in shares:
            heads, bypass = shares["attention"], shares["bypass"][:, 0, :, 0]
            own = torch.diag_embed(stay)
        else:
            stays = stay if stays is None else stays * stay
        if "feed-forward" in shares:
            ffn = shares["feed-forward"][:, 0, :, 0]
    if heads is None or bypass is None or own is None:
        raise UnsupportedArchitectureError(
            f"layer {frozen.block.layer}: no sum has attention and a bypass as its parts. "
            f"tl_norms.block_norms(cache) reads this model."
        )
    maps = heads.sum(1) + own
    maps = maps if stays is None else maps * stays[..., None]
    return heads, bypass, torch.zeros_like(bypass) if ffn is None else ffn, maps


def _normalized(shares: dict[str, Tensor], part_threshold: float) -> dict[str, Tensor]:
    """Shares of all parts of a sum, 1 together; small ones set to zero if asked for."""
    for least in (0.0, part_threshold) if part_threshold else (0.0,):
        shares = {name: share.masked_fill(share < least, 0) for name, share in shares.items()}
        total = torch.stack([share.sum((1, 3), keepdim=True) for share in shares.values()]).sum(0)
        shares = {name: share / total.masked_fill(total == 0, 1) for name, share in shares.items()}
    return shares


def _head_shares(made: Completed, part: _Part, y: Float[Tensor, "b q d"]) -> Float[Tensor, "b h q k"]:
    """‖y‖₁ - ‖y - v‖₁ for what every head puts in from every source."""
    cross = made.sources.cross
    terms = made.sources.terms if part.what == "attention" else (() if cross is None else cross.terms)
    n_heads = max(_heads(term) for term in terms)
    n_keys, (n_batch, n_queries, d_model) = next(term.n_keys for term in terms), y.shape
    out = y.new_zeros(n_batch, n_heads, n_queries, n_keys)
    columns = max(1, pieces(y.device).pair_vectors // (3 * n_queries * d_model * y.element_size()))
    for head in range(n_heads):
        chosen = tuple(_of_head(term.mapped(Multiple(part.factor)), head) for term in terms)
        for b in range(n_batch):
            for first in range(0, n_keys, columns):
                keys = slice(first, min(first + columns, n_keys))
                vectors = pairs(chosen, b, slice(0, n_queries), keys)
                out[b, head, :, keys] = nearer(vectors, y[b]).T
    return out


def _heads(term: Term) -> int:
    return term.pattern.shape[1] if not isinstance(term, Neurons) else _heads(term.hidden.inputs[0][0])


def _of_head(term: Any, head: int) -> Any:
    """The same term with one head alone."""
    one = slice(head, head + 1)
    if isinstance(term, Neurons):
        inputs = tuple(tuple(_of_head(part, head) for part in terms) for terms in term.hidden.inputs)
        return replace(term, hidden=Hidden(inputs, term.hidden.coefficients, term.hidden.rows))
    if isinstance(term, Mixture):
        mixed = MixedHeads(term.pattern[:, one], term.values[:, :, one], term.sent.mixed.crossed)
        return replace(term, sent=Sent(mixed, term.sent.projection[one]))
    return replace(term, pattern=term.pattern[:, one], vectors=term.vectors[:, one])


def _edges(
    layers: tuple[int, ...],
    target: int,
    threshold: float,
    heads: Tensor,
    bypass: Tensor,
    ffn: Tensor,
    alone: list[bool],
) -> Iterator[FlowEdge]:
    """From the target down: every edge of at least the threshold whose upper end was reached.

    alone: of each layer, whether the feed-forward has a sum of its own, above that of attention.
    """
    weights = heads.sum(2)
    for text in range(weights.shape[1]):
        reached = {target}
        for row in range(len(layers) - 1, -1, -1):
            layer, below = layers[row], set()
            for query in sorted(reached):
                through = float(ffn[row, text, query])
                if through >= threshold and through > 0:
                    yield FlowEdge("feed-forward", layer, text, query, query, through)
                    below |= set() if alone[row] else {query}
                if alone[row] and 1 - through >= threshold:
                    yield FlowEdge("bypass of the feed-forward", layer, text, query, query, 1 - through)
                elif alone[row] and through < threshold:
                    continue
                if float(bypass[row, text, query]) >= threshold:
                    below.add(query)
                    yield FlowEdge("bypass", layer, text, query, query, float(bypass[row, text, query]))
                for key in (weights[row, text, query] >= threshold).nonzero()[:, 0].tolist():
                    below.add(key)
                    yield FlowEdge("attention", layer, text, query, key, float(weights[row, text, query, key]))
            reached = below
