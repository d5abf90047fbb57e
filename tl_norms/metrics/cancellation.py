"""How much of the feed-forward's effect survives the steps behind it, and which dimensions carry it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..blocks.activations import Activations, check_cache
from ..blocks.structure import Add, Block, FeedForward, Norm, NormForm, Reader, Truth
from ..errors import MissingExtraError, UnknownScopeError, UnsupportedArchitectureError
from ..linear import steps
from ..linear.maps import Shared, source_norms
from ..linear.sources import Sources
from ..plan import Layers, chosen_blocks, reader_of
from ..walk import Walk
from .change import MetricsInputError, contextualization_change

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Cancellation:
    """Changes of the map from the attention block up to each later step, side by side.

    Attributes:
        base: the scope that everything is compared with: the attention block, which the feed-forward's residual
            connection brings back
        steps: the steps behind it, cumulated: ("ff", "ff_res", "ff_res_ln") for post-norm models,
            ("ln", "ln_ff", "ln_ff_res") for pre-norm ones
        layers: the layer numbers along the first axis
        changes: variant -> step -> 1 - Spearman against the base, [layer batch]. Variants: "all";
            "without_large_outputs" and "without_small_gains", whose maps leave the dimensions in `left_out` out
        left_out: variant -> the dimensions of d_model left out, [layer k]
        output_norm: mean length of what the feed-forward adds to the stream, [layer batch]
        stream_norm: mean length of the bypassed stream that it is added to, [layer batch]
    """

    base: str
    steps: tuple[str, ...]
    layers: tuple[int, ...]
    changes: dict[str, dict[str, Float[Tensor, "layer *batch"]]]
    left_out: dict[str, Int[Tensor, "layer k"]]
    output_norm: Float[Tensor, "layer *batch"]
    stream_norm: Float[Tensor, "layer *batch"]

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer, text and variant: a column per step with its change, and the two mean lengths.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe needs pandas: pip install 'tl_norms[metrics]'") from error
        rows = []
        for variant, changes in self.changes.items():
            for number, layer in enumerate(self.layers):
                lengths = {"output_norm": self.output_norm[number], "stream_norm": self.stream_norm[number]}
                columns = {step: change[number] for step, change in changes.items()} | lengths
                for batch in range(self.output_norm[number].numel()):
                    row: dict[str, object] = {"layer": layer, "batch": batch, "left_out": variant}
                    rows.append(row | {name: float(value.reshape(-1)[batch]) for name, value in columns.items()})
        table = pandas.DataFrame(rows)
        return table if self.output_norm.ndim == 2 else table.drop(columns="batch")

    def __repr__(self) -> str:
        lines = [
            f"Cancellation, {len(self.layers)} layers: 1 - Spearman against {self.base}, mean over layers and texts"
        ]
        for variant, changes in self.changes.items():
            cells = "   ".join(f"{step} {float(change.nanmean()):.3f}" for step, change in changes.items())
            lines.append(f"  {variant:24} {cells}")
        lines.append(
            f"  feed-forward output {float(self.output_norm.mean()):.3g} against bypassed stream "
            f"{float(self.stream_norm.mean()):.3g} (mean lengths)"
        )
        return "\n".join(lines)


def cancellation(
    cache,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    bias: steps.Bias = "player",
    leave_out: int | None = None,
    max_memory: int | None = None,
    stack: str | None = None,
) -> Cancellation:
    """Whether the residual connection and the layer norm undo what the feed-forward does (Kobayashi et al. 2024).

    change(step) = 1 - Spearman(map of the attention block, map after the step), cumulated: through FF, FF + RES,
    FF + RES + LN. Where it shrinks from one step to the next, that step cancels the feed-forward. The base is the
    point that the residual connection brings back, so that without any feed-forward the change through RES is zero.

    Two mechanisms are looked at: a residual connection that overwrites (`output_norm` against `stream_norm`), and a
    layer norm that shrinks the dimensions in which the feed-forward is large. For the latter the same changes are
    computed with k dimensions left out of every vector, in front of and behind each step alike: those in which the
    feed-forward's output is largest (mean magnitude over real positions), and those with the smallest gains |gamma| of
    the last layer norm of the feed-forward block (the one in front of it in pre-norm models). Statistics of layer
    norms stay those of the full vectors. Details of the published protocol could not be verified; these are ours.

    Args:
        cache: an ActivationCache
        layers, mask, source_mask, bias, max_memory, stack: as for `tl_norms.ffn_maps`
        leave_out: k; None for 1 % of d_model (at least one); 0 for neither of the two variants, three times faster

    Returns:
        Cancellation: `.changes["all"]["ff"]` [layer batch], `.output_norm` [layer batch], `.to_dataframe()`, ...

    Raises:
        UnsupportedArchitectureError: leave_out is not 0 and the feed-forward block has no layer norm with gains.
        MissingExtraError: scipy is not installed. Otherwise as `tl_norms.ffn_maps`.

    Example:
        >>> cancellation(cache, layers=[3])                                             # doctest: +SKIP
        >>> cancellation(cache, leave_out=3).to_dataframe()                             # doctest: +SKIP
    """
    check_cache(cache)
    reader = reader_of(cache.model, stack)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader, mask, source_mask)
    blocks, _ = chosen_blocks(reader, layers)
    base, later = _base(blocks[0])
    changes, dimensions, outputs, streams = [], [], [], []
    for block in blocks:
        walk = Walk(reader, activations, block, bias)
        parts = {scope: sources for scope, sources, _ in walk.decomposed((base, *later), True)}
        output, stream = _summands(block, parts)
        left_out = _left_out(reader, activations, block, output, _checked(leave_out, output.shape[-1]))
        changes.append(_changes(parts, activations, left_out, max_memory))
        dimensions.append(left_out)
        outputs.append(_mean_length(output, activations.mask))
        streams.append(_mean_length(stream, activations.mask))

    def collected(rows: list[Tensor]) -> Tensor:
        return _stack(rows if activations.has_batch else [row[0] for row in rows])

    return Cancellation(
        base=base,
        steps=tuple(scope.removeprefix(base + "_") for scope in later),
        layers=tuple(block.layer for block in blocks),
        changes={
            variant: {
                scope.removeprefix(base + "_"): collected([layer[variant][scope] for layer in changes])
                for scope in later
            }
            for variant in changes[0]
        },
        left_out={variant: _stack([layer[variant] for layer in dimensions]) for variant in dimensions[0]},
        output_norm=collected(outputs),
        stream_norm=collected(streams),
    )


def _checked(k: int | None, d_model: int) -> int:
    if k is None:
        return max(1, d_model // 100)
    if not 0 <= k < d_model:
        raise MetricsInputError(f"leave_out is {k}, expected 0 to {d_model - 1} of the {d_model} dimensions.")
    return k


def _residual(block: Block) -> tuple[int, Add]:
    """The residual connection around the feed-forward, with the number of its point."""
    additions = [(n, s.operation) for n, s in enumerate(block.steps, start=1) if isinstance(s.operation, Add)]
    if not any(isinstance(step.operation, FeedForward) for step in block.steps):
        raise UnknownScopeError(f"layer {block.layer} has no feed-forward: its chain is {', '.join(block.scopes)}.")
    return additions[-1]


def _scope(block: Block, point: int) -> str | None:
    return block.steps[point - 1].scope if point else None


def _base(block: Block) -> tuple[str, tuple[str, ...]]:
    """The scope that the residual connection brings back, and all behind it."""
    base = _scope(block, _residual(block)[1].other)
    if base is None:  # parallel: it brings back the block's input, before any attention
        base = next(scope for scope in block.scopes if scope.endswith("_ff")).removesuffix("_ff")
    return base, block.scopes[block.scopes.index(base) + 1 :]


def _summands(block: Block, parts: dict[str, Sources]) -> tuple[Tensor, Tensor]:
    """What the feed-forward adds to the stream, and the stream it is added to, [b q d]."""
    number, add = _residual(block)
    branch, total = _scope(block, block.steps[number - 1].reads), _scope(block, number)
    assert branch is not None and total is not None
    output = parts[branch].total * add.scale
    bypassed = _scope(block, add.other)
    if bypassed is not None:
        return output, parts[bypassed].total * add.other_scale
    stream = parts[total].total - output
    return output - parts[branch.removesuffix("_ff")].total * add.scale, stream  # without the attention


def _left_out(reader: Reader, activations: Activations, block: Block, output: Tensor, k: int) -> dict[str, Tensor]:
    """The dimensions that each variant leaves out, [k]."""
    if k == 0:
        return {}
    gain = _gain(reader, activations, block)
    size = output.abs() if activations.mask is None else output.abs()[activations.mask.to(output.device)]
    return {
        "without_large_outputs": size.flatten(0, -2).mean(0).topk(k).indices,
        "without_small_gains": gain.abs().topk(k, largest=False).indices.to(output.device),
    }


def _gain(reader: Reader, activations: Activations, block: Block) -> Tensor:
    """The gains of the block's last layer norm; where a norm may take several forms, those its output shows."""
    norms = [(step.reads, step.operation) for step in block.steps if isinstance(step.operation, Norm)]
    reads, norm = norms[-1] if norms else (0, None)
    forms = () if norm is None else reader.norm_forms(norm)
    before = block.steps[reads - 1].truth if reads else Truth((block.stream,))
    if len(forms) > 1 and norm is not None and norm.output is not None and before is not None:
        full, truth = activations.truth(before), activations.truth(norm.output)
        forms = sorted(forms, key=lambda form: float((_normalised(full, form) - truth).norm()))
    if not forms or forms[0].gain is None:
        raise UnsupportedArchitectureError(
            f"layer {block.layer} has no layer norm with gains behind its attention, so there are no smallest gains to "
            f"leave out: pass leave_out=0."
        )
    return forms[0].gain.detach()


def _normalised(full: Tensor, form: NormForm) -> Tensor:
    gain, beta = (None if value is None else value.detach().to(full) for value in (form.gain, form.beta))
    return steps.normalise(steps.start(full), full, center=form.center, eps=form.eps, gain=gain, beta=beta).total


def _changes(
    parts: dict[str, Sources], activations: Activations, left_out: dict[str, Tensor], max_memory: int | None
) -> dict[str, dict[str, Tensor]]:
    """variant -> scope -> change of its map against the first scope's, [b]."""
    base, *later = parts
    changes: dict[str, dict[str, Tensor]] = {}
    for variant in ("all", *left_out):
        chosen = {scope: _without(sources, left_out.get(variant)) for scope, sources in parts.items()}
        shared = Shared.of(tuple(chosen.values()))
        maps = {scope: source_norms(found, max_memory=max_memory, shared=shared) for scope, found in chosen.items()}
        changes[variant] = {
            scope: contextualization_change(
                maps[base],
                maps[scope],
                causal=parts[scope].causal,
                mask=activations.mask,
                source_mask=activations.source_mask,
            )
            for scope in later
        }
    return changes


def _without(sources: Sources, dimensions: Tensor | None) -> Sources:
    """The vectors without some dimensions of d_model."""
    if dimensions is None:
        return sources
    keep = torch.ones(sources.own.shape[-1], dtype=torch.bool, device=sources.own.device)
    keep[dimensions] = False
    return sources.mapped(lambda x: x[..., keep.to(x.device)])


def _mean_length(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """Mean length over real positions, [b]."""
    lengths = vectors.norm(dim=-1)
    real = torch.ones_like(lengths) if mask is None else mask.to(lengths)
    return (lengths * real).sum(-1) / real.sum(-1)


def _stack(rows: list[Tensor]) -> Tensor:
    return torch.stack([row.to(rows[0].device) for row in rows])
