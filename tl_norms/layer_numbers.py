"""All numbers of one layer, and the layers as one result."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .blocks.activations import Activations
from .complete import Completed, OneByOne, compare_pairs, completed
from .edits import Edit
from .freeze import FrozenBlock
from .labels import Strings, model_name, strings_of_run
from .linear.carry.pairs import CrossSources, Sources
from .linear.carry.terms import MixedHeads, Mixture, Sent
from .linear.measure.factors import head_norms
from .linear.measure.lengths import Shared, needs_vectors, source_norms
from .linear.measure.measures import Length
from .linear.measure.spots import agree
from .linear.measure.values import check_sum, compare_own, compare_ratios, source_values
from .linear.required import read, together
from .plan import Plan
from .results import BlockNorms, HeadNorms, RunFacts, ScopeNorms


@dataclass(frozen=True)
class LayerNumbers:
    """The numbers of one layer, with a batch axis; a map is None where only ratios are wanted."""

    layer: int
    maps: dict[str, Tensor]
    ratios: dict[str, Tensor]
    shares: dict[str, Tensor]
    errors: dict[str, Tensor]
    value_norms: Tensor
    pattern: Tensor | None
    remainders: dict[str, Tensor]
    causal: bool
    edits: tuple[Edit, ...] = ()
    past: int = 0

    def without_pattern(self) -> "LayerNumbers":
        """The same, the attention pattern let go."""
        return replace(self, pattern=None)


def layer_numbers(plan: Plan, activations: Activations, block_number: int, *, maps: bool = True) -> LayerNumbers:
    """Take the steps of one layer, compare every scope with the model, measure."""
    with together():
        return _measured(plan, activations, block_number, maps)


def _measured(plan: Plan, activations: Activations, block_number: int, maps: bool) -> LayerNumbers:
    options, block = plan.options, plan.blocks[block_number]
    frozen = FrozenBlock(plan.reader, activations, block, options.bias, options.edits, options.ff)
    made = list(completed(frozen, plan.scopes, options.check))
    shared = Shared.of(tuple(one.sources for one in made))
    heads = heads_of(frozen, made)
    causal = all(one.sources.causal for one in made)
    values, lengths = shared.norms_of_heads(heads, causal) if maps else head_norms(heads), {}
    measure, remainders = options.measure, {}
    formed: dict[int, OneByOne] = {}
    for one in made if maps else ():
        sources = one.sources
        rest = sources.sizes[2] if isinstance(measure, Length) else measure.of(sources.rest, sources.total)
        remainders[one.scope] = rest if activations.mask is None else unpadded(rest, activations)
        if isinstance(measure, Length):
            found = source_norms(sources, max_memory=options.max_memory, shared=shared, sketch=options.sketch)
        else:
            found = source_values(sources, measure, max_memory=options.max_memory)
            if options.check:
                check_sum(sources, measure, found, rest, f"layer {block.layer}, scope {one.scope!r}")
        lengths[one.scope] = found
        if options.check:
            compare_own(sources, measure, found, rest, f"layer {block.layer}, scope {one.scope!r}")
        exact = options.sketch is None or not needs_vectors(sources)
        if options.check and exact:
            compare_pairs(frozen, one, found, measure, formed)
    ratios = {one.scope: one.sources.mixing_ratio() for one in made}
    crossed = [one for one in made if one.sources.cross is not None and not one.sources.cross.before]
    shares = {one.scope: one.sources.shares() for one in crossed}
    for one in made if options.check else ():
        compare_ratios(one.sources, ratios[one.scope], shares.get(one.scope), f"layer {block.layer}")
    return LayerNumbers(
        layer=block.layer,
        maps=lengths,
        ratios=ratios,
        shares=shares,
        errors={one.scope: one.error for one in made},
        value_norms=values,
        pattern=activations.tensor(block.attention()[1].pattern),
        remainders=remainders,
        causal=causal,
        edits=tuple(frozen.found),
        past=max((one.sources.past for one in made), default=0),
    )


def unpadded(rest: Tensor, activations: Activations) -> Tensor:
    padded = ~activations.real(rest).reshape(*rest.shape[:2], *[1] * (rest.ndim - 2))
    return rest.masked_fill(padded, 0)


def heads_of(frozen: FrozenBlock, made: list[Completed] | tuple[Completed, ...] = ()) -> Mixture:
    """The heads of self-attention before any gate or sum: f(x_j) per head, mixed by the pattern.

    The very mixture that the scopes are made of, where it is one.
    """
    values, mixing = frozen.attention()
    for one in made:
        sources: Sources | CrossSources | None = one.sources
        while sources is not None:
            for term in sources.terms:
                if not isinstance(term, Mixture) or term.functions or term.scale is not None:
                    continue
                if term.pattern is mixing.pattern and term.sent.projection is mixing.weight:
                    return term
            sources = None if sources.image is None else sources.image.of
    square = mixing.pattern.shape[-2] == mixing.pattern.shape[-1]
    heads = Mixture(Sent(MixedHeads(mixing.pattern, values, crossed=not square), mixing.weight))
    weight = rearrange(mixing.weight, "h e d -> (h e) d")
    wanted = rearrange(mixing.mixed(values), "b q h e -> b q (h e)") @ weight
    found = heads.others + heads.sent.mixed.own @ weight if square else heads.others
    agree(found, wanted, wanted.norm(dim=-1, keepdim=True) + heads.others.norm(dim=-1, keepdim=True), "sums of heads")
    return heads


def collected(
    plan: Plan,
    layers: list[LayerNumbers],
    activations: Activations,
    attention: Tensor | None = None,
    attention_ratio: Tensor | None = None,
) -> BlockNorms:
    """The layers as one result; Attn-W and its mixing ratio in place of the patterns where those are not kept."""
    has_batch = activations.has_batch

    def stack(rows: list[Tensor]) -> Tensor:
        return stacked(rows, has_batch)

    scopes = {}
    errors = iter(read([layer.errors[scope] for scope in plan.scopes for layer in layers]))
    for scope in plan.scopes:
        kept = all(scope in layer.maps for layer in layers)
        crossed = all(scope in layer.shares for layer in layers)
        scopes[scope] = ScopeNorms(
            map=stack([layer.maps[scope] for layer in layers]) if kept else None,
            mixing_ratio=stack([layer.ratios[scope] for layer in layers]),
            error=torch.tensor([next(errors) for _ in layers]),
            remainder=stack([layer.remainders[scope] for layer in layers]) if kept else None,
            shares=torch.stack([stack([layer.shares[scope][part] for layer in layers]) for part in range(3)])
            if crossed
            else None,
        )
    patterns = [layer.pattern for layer in layers if layer.pattern is not None]
    heads = HeadNorms(
        value_norms=stack([layer.value_norms for layer in layers]),
        patterns=tuple(p if has_batch else p[0] for p in patterns) if attention_ratio is None else None,
        attention=attention,
        attention_ratio=attention_ratio,
    )
    masks = [m if m is None or has_batch else m[0] for m in (activations.mask, activations.source_mask)]
    strings, source_strings = _strings(plan, layers, activations)
    facts = RunFacts(
        layers=tuple(layer.layer for layer in layers),
        skipped=plan.skipped,
        chain=plan.chain,
        processing=plan.processing,
        causal=all(layer.causal for layer in layers),
        mask=masks[0],
        source_mask=masks[1],
        boundary=layers[0].value_norms.shape[-1] if any(layer.shares for layer in layers) else None,
        sketch=plan.options.sketch,
        measure=plan.options.measure,
        edits=tuple(edit for layer in layers for edit in layer.edits),
        past=layers[0].past,
        token_strings=strings,
        source_strings=source_strings,
        model_name=model_name(plan.reader.model),
    )
    return BlockNorms(scopes, heads, facts)


def _strings(plan: Plan, layers: list[LayerNumbers], activations: Activations) -> tuple[Strings | None, Strings | None]:
    """What the positions, and those of the encoder, are called."""
    n_texts, _, n = layers[0].value_norms.shape
    n_source = max((found.shape[-1] for found in layers[0].maps.values()), default=n) - n
    reader, options = plan.reader, plan.options
    shape = (n_texts, n, n_source)
    return strings_of_run(activations.tensors, reader.model, reader.stack, options.tokens, activations.mask, shape)


def stacked(rows: list[Tensor], has_batch: bool) -> Tensor:
    """One tensor [layer ...] on the first layer's device, without batch axis if the cache has none."""
    rows = rows if has_batch else [row[0] for row in rows]
    return torch.stack([row.to(rows[0].device) for row in rows])
