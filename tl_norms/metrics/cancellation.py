"""How much of the feed-forward's effect survives the steps after it, and which dimensions carry it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import Unpack

from ..blocks.activations import Activations
from ..blocks.structure import Add, Block, FeedForward, Norm
from ..complete import completed
from ..errors import MissingExtraError, UnknownScopeError, UnsupportedArchitectureError
from ..freeze import FrozenBlock
from ..linear.carry.pairs import Sources
from ..linear.measure.lengths import Shared, source_norms
from ..linear.operators import HeldNorm
from ..options import AnalysisOptions
from ..plan import Plan
from ..storage.storable import Storable
from .change import MetricsInputError, contextualization_change

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Cancellation(Storable):
    """Changes of the map from the attention block up to each later step, side by side.

    Attributes:
        base: the scope that everything is compared with: the attention block, which the feed-forward's residual
            connection brings back
        steps: the steps after it, cumulated: ("ff", "ff_res", "ff_res_ln") for post-norm models,
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


@torch.no_grad()
def cancellation(cache, *, leave_out: int | None = None, **options: Unpack[AnalysisOptions]) -> Cancellation:
    """Whether the residual connection and the layer norm undo what the feed-forward does (Kobayashi et al. 2024).

    change(step) = 1 - Spearman(map of the attention block, map after the step), cumulated: through FF, FF + RES,
    FF + RES + LN. Where it shrinks from one step to the next, that step cancels the feed-forward. The base is the
    point that the residual connection brings back, so that without any feed-forward the change through RES is zero.

    Two mechanisms are looked at: a residual connection that overwrites (`output_norm` against `stream_norm`), and a
    layer norm that shrinks the dimensions in which the feed-forward is large. For the latter the same changes are
    computed with k dimensions left out of every vector, before and after each step alike: those in which the
    feed-forward's output is largest (mean magnitude over real positions), and those with the smallest gains |gamma| of
    the last layer norm of the feed-forward block (the one before it in pre-norm models). Statistics of layer
    norms stay those of the full vectors. Details of the published protocol could not be verified; these are ours.

    Args:
        cache: an ActivationCache
        leave_out: k; None for 1 % of d_model (at least one); 0 for neither of the two variants, three times faster
        **options: as for `tl_norms.ffn_maps`, but no sketch

    Returns:
        Cancellation: `.changes["all"]["ff"]` [layer batch], `.output_norm` [layer batch], `.to_dataframe()`, ...

    Raises:
        UnsupportedArchitectureError: leave_out is not 0 and the feed-forward block has no layer norm with gains.
        MissingExtraError: scipy is not installed. Otherwise as `tl_norms.ffn_maps`.

    Example:
        >>> cancellation(cache, layers=[3])                                             # doctest: +SKIP
        >>> cancellation(cache, leave_out=3).to_dataframe()                             # doctest: +SKIP
    """
    if options.get("sketch") is not None:
        raise MetricsInputError("cancellation takes no sketch=: rank correlations need exact maps.")
    if options.get("measure", "l2") != "l2":
        raise MetricsInputError("cancellation takes no measure=: it is about lengths.")
    plan, activations = Plan.of_cache(cache, None, **options)
    base, later = _base(plan.blocks[0])
    changes, dimensions, outputs, streams = [], [], [], []
    for block in plan.blocks:
        frozen = FrozenBlock(plan.reader, activations, block, plan.options.bias, plan.options.edits, plan.options.ff)
        parts = {one.scope: one.sources for one in completed(frozen, (base, *later), plan.options.check)}
        output, stream = _summands(block, parts)
        left_out = _left_out(frozen, output, _checked(leave_out, output.shape[-1]))
        changes.append(_changes(parts, activations, left_out, plan.options.max_memory))
        dimensions.append(left_out)
        outputs.append(_mean_length(output, activations.mask))
        streams.append(_mean_length(stream, activations.mask))

    def collected(rows: list[Tensor]) -> Tensor:
        return _stack(rows if activations.has_batch else [row[0] for row in rows])

    return Cancellation(
        base=base,
        steps=tuple(scope.removeprefix(base + "_") for scope in later),
        layers=tuple(block.layer for block in plan.blocks),
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
    """The scope that the residual connection brings back, and all after it."""
    base = _scope(block, _residual(block)[1].other)
    if base is None:  # parallel: it brings back the block's input, before any attention
        base = next(scope for scope in block.scopes if scope.endswith("_ff")).removesuffix("_ff")
    return base, block.scopes[block.scopes.index(base) + 1 :]


def _summands(block: Block, parts: dict[str, Sources]) -> tuple[Tensor, Tensor]:
    """What the feed-forward adds to the stream, and the stream it is added to, [b q d]."""
    number, add = _residual(block)
    branch, total = _scope(block, block.steps[number - 1].reads), _scope(block, number)
    if branch is None or total is None:
        raise UnsupportedArchitectureError(f"layer {block.layer}: its feed-forward ends at no scope of its own.")
    output = parts[branch].total * add.scale
    bypassed = _scope(block, add.other)
    if bypassed is not None:
        return output, parts[bypassed].total * add.other_scale
    stream = parts[total].total - output
    return output - parts[branch.removesuffix("_ff")].total * add.scale, stream  # without the attention


def _left_out(frozen: FrozenBlock, output: Tensor, k: int) -> dict[str, Tensor]:
    """The dimensions that each variant leaves out, [k]."""
    if k == 0:
        return {}
    mask = frozen.activations.mask
    size = output.abs() if mask is None else output.abs()[mask.to(output.device)]
    return {
        "without_large_outputs": size.flatten(0, -2).mean(0).topk(k).indices,
        "without_small_gains": _gain(frozen).abs().topk(k, largest=False).indices.to(output.device),
    }


def _gain(frozen: FrozenBlock) -> Tensor:
    """The gains of the block's last layer norm."""
    norms = [n for n, step in enumerate(frozen.block.steps, start=1) if isinstance(step.operation, Norm)]
    held = frozen.step(norms[-1]).operator if norms else None
    if not isinstance(held, HeldNorm) or held.gain is None:
        raise UnsupportedArchitectureError(
            f"layer {frozen.block.layer} has no layer norm with gains after its attention, so there are no smallest "
            f"gains to leave out: pass leave_out=0."
        )
    return held.gain


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
    return sources.mapped(Kept(keep))


@dataclass(frozen=True)
class Kept:
    """x -> some of its dimensions."""

    dimensions: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., self.dimensions.to(x.device)]


def _mean_length(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """Mean length over real positions, [b]."""
    lengths = vectors.norm(dim=-1)
    real = torch.ones_like(lengths) if mask is None else mask.to(lengths)
    return (lengths * real).sum(-1) / real.sum(-1)


def _stack(rows: list[Tensor]) -> Tensor:
    return torch.stack([row.to(rows[0].device) for row in rows])
