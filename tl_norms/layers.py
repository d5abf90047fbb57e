"""All numbers of one layer, and the layers as one result."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .blocks.activations import Activations
from .linear.factors import head_norms
from .linear.maps import Shared, source_norms
from .plan import Plan
from .results import BlockNorms
from .walk import Walk


@dataclass(frozen=True)
class LayerNorms:
    """The numbers of one layer, with a batch axis; a map is None where only ratios are wanted."""

    layer: int
    maps: dict[str, Tensor]
    ratios: dict[str, Tensor]
    shares: dict[str, Tensor]
    errors: dict[str, float]
    value_norms: Tensor
    pattern: Tensor | None
    causal: bool

    def without_pattern(self) -> "LayerNorms":
        """The same, the attention pattern let go."""
        return replace(self, pattern=None)


def layer_norms(plan: Plan, walk: Walk, *, maps: bool = True) -> LayerNorms:
    """Take the steps of one layer, check every scope, measure."""
    block = walk.block
    heads = walk.heads()
    decomposed, errors = {}, {}
    for scope, sources, error in walk.decomposed(plan.scopes, plan.check, heads):
        decomposed[scope], errors[scope] = sources, error
    attention = block.attention()[1]
    shared = Shared.of(tuple(decomposed.values()))
    values, lengths = shared.norms_of_heads(heads[0]) if maps else head_norms(heads[0]), {}
    for scope, sources in decomposed.items() if maps else ():
        lengths[scope] = source_norms(sources, max_memory=plan.max_memory, shared=shared, sketch=plan.sketch)
    return LayerNorms(
        layer=block.layer,
        maps=lengths,
        ratios={scope: sources.mixing_ratio() for scope, sources in decomposed.items()},
        shares={scope: sources.shares() for scope, sources in decomposed.items() if sources.cross is not None},
        errors=errors,
        value_norms=values,
        pattern=walk.activations.tensor(attention.pattern),
        causal=all(sources.causal for sources in decomposed.values()),
    )


def collected(
    plan: Plan,
    layers: list[LayerNorms],
    activations: Activations,
    attention: Tensor | None = None,
    attention_ratio: Tensor | None = None,
) -> BlockNorms:
    """The layers as one result; Attn-W and its mixing ratio in place of the patterns where those are not kept."""
    has_batch, mask, source_mask = activations.has_batch, activations.mask, activations.source_mask
    crossed = [scope for scope in plan.scopes if scope in layers[0].shares]
    kept = [scope for scope in plan.scopes if all(scope in layer.maps for layer in layers)]
    return BlockNorms(
        scopes=plan.scopes,
        layers=tuple(layer.layer for layer in layers),
        maps={scope: stacked([layer.maps[scope] for layer in layers], has_batch) for scope in kept},
        mixing_ratios={scope: stacked([layer.ratios[scope] for layer in layers], has_batch) for scope in plan.scopes},
        value_norms=stacked([layer.value_norms for layer in layers], has_batch),
        patterns=None
        if attention_ratio is not None
        else tuple(_unbatched(layer.pattern, has_batch) for layer in layers),
        error={scope: torch.tensor([layer.errors[scope] for layer in layers]) for scope in plan.scopes},
        processing=plan.processing,
        skipped=plan.skipped,
        causal=all(layer.causal for layer in layers),
        mask=mask if mask is None or has_batch else mask[0],
        source_mask=source_mask if source_mask is None or has_batch else source_mask[0],
        boundary=layers[0].value_norms.shape[-1] if crossed else None,
        shares={
            scope: torch.stack(
                [stacked([layer.shares[scope][part] for layer in layers], has_batch) for part in range(3)]
            )
            for scope in crossed
        },
        chain=plan.chain,
        sketch=plan.sketch,
        kept_attention=attention,
        kept_attention_ratio=attention_ratio,
    )


def stacked(rows: list[Tensor], has_batch: bool) -> Tensor:
    """One tensor [layer ...] on the first layer's device, without batch axis if the cache has none."""
    return torch.stack([_unbatched(row, has_batch).to(rows[0].device) for row in rows])


def _unbatched(tensor: Tensor | None, has_batch: bool) -> Tensor:
    assert tensor is not None
    return tensor if has_batch else tensor[0]
