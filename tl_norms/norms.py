"""From a cache to numbers: read the blocks, walk their chains, verify every scope against the model's activations.

    reader.blocks()          which steps, between which hooks          (blocks/)
    _walk                    the steps, on source vectors              (linear/)
    _error                   total against the model's own activation
    source_norms             lengths of all pairs                      (linear/maps)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import processing
from .blocks.activations import Activations, check_cache
from .blocks.bridge import BridgeReader
from .blocks.hooked import HookedReader
from .blocks.structure import (
    Add,
    Affine,
    Attention,
    Block,
    FeedForward,
    FeedForwardWeights,
    Norm,
    NormForm,
    Operation,
    Reader,
    Truth,
)
from .errors import DecompositionError, UnknownLayerError, UnsupportedArchitectureError
from .linear import steps
from .linear.factors import head_norms, triangles
from .linear.maps import Shared, free_memory, source_norms
from .linear.sources import Mixture, Sources
from .results import BlockNorms, Decomposition, is_post_norm, resolve_scope

Scopes = str | Sequence[str] | None
Layers = int | Iterable[int] | None

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_COLUMNS = 64  # neurons compared where only their pre-activations are hooked


def reader_of(model: nn.Module, stack: str | None = None) -> Reader:
    """The reader for this kind of model, and for one of its stacks of blocks."""
    if hasattr(model, "original_model") and hasattr(model, "adapter"):
        stacks = [name for name in ("blocks", "decoder_blocks", "encoder_blocks", "H_blocks", "L_blocks") if hasattr(model, name)]
        chosen = f"{stack}_blocks" if stack else next(iter(stacks), "blocks")
        if chosen not in stacks:
            raise UnsupportedArchitectureError(
                f"{type(model.original_model).__name__} has no stack {stack!r} of blocks; it has "
                f"{', '.join(repr(name.removesuffix('_blocks')) for name in stacks if name != 'blocks') or 'one, the default'}."
            )
        return BridgeReader(model, chosen)
    if hasattr(model, "blocks") and hasattr(model, "cfg"):
        return HookedReader(model)
    raise UnsupportedArchitectureError(
        f"expected a TransformerBridge, HookedTransformer or HookedEncoder, got {type(model).__name__}. "
        f"Boot it: TransformerBridge.boot_transformers(name)."
    )


def scopes(model: nn.Module, *, stack: str | None = None) -> tuple[str, ...]:
    """The chain of scopes of a model, in order.

    A scope is a prefix of the block's chain of steps, spelled as the steps taken: `attn`, `res` (residual connection),
    `ln` (layer norm), `ff` (feed-forward).

    Args:
        model: a TransformerBridge, HookedTransformer or HookedEncoder

    Returns:
        For instance ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res") for a pre-norm model.

    Raises:
        UnsupportedArchitectureError: the model has no attention, or a block that is not understood.

    Example:
        >>> tl_norms.scopes(model)                                              # doctest: +SKIP
        ('attn', 'attn_res', 'attn_res_ln', 'attn_res_ln_ff', 'attn_res_ln_ff_res', 'attn_res_ln_ff_res_ln')
    """
    return _chain(reader_of(model, stack))


def required_hooks(
    model: nn.Module, scopes: Scopes = None, layers: Layers = None, *, stack: str | None = None
) -> list[str]:
    """The activations that an analysis needs, as a `names_filter` for `run_with_cache`.

    Args:
        model: the model that will be run
        scopes: as for `block_norms`; None for the attention block
        layers: one layer, several, or None for all

    Returns:
        Hook names. A cache of exactly these serves every function of this package for the same scopes and layers.

    Raises:
        UnknownScopeError, UnknownLayerError: not in this model.

    Example:
        >>> names = tl_norms.required_hooks(model, layers=[0])                  # doctest: +SKIP
        >>> _, cache = model.run_with_cache("A sentence.", names_filter=names)  # doctest: +SKIP
    """
    reader = reader_of(model, stack)
    blocks, _ = _chosen_blocks(reader, layers)
    chosen = _chosen_scopes(scopes, _chain(reader))
    return list(dict.fromkeys(name for block in blocks for name in block.hooks(chosen)))


def value_vectors(cache, layer: int, *, stack: str | None = None) -> Float[Tensor, "*batch head key d_model"]:
    """The value-transformed vectors f(x) = (x W_V + b_V) W_O of one layer, per head.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end

    Returns:
        [batch head key d_model]. b_V is part of f, b_O is not (Kobayashi et al. 2020, Eq. 3).

    Raises:
        MissingActivationError: the cache lacks the values or the pattern.

    Example:
        >>> tl_norms.value_vectors(cache, 0).shape                              # doctest: +SKIP
        torch.Size([1, 12, 9, 384])
    """
    analysis = _Analysis.of(cache, ("attn",), layer, None, stack)
    mixture, _ = analysis.mixture(analysis.blocks[0])
    vectors = torch.stack([mixture.head_vectors(b, slice(None)) for b in range(len(mixture.values))])
    return vectors if analysis.activations.has_batch else vectors[0]


def value_norms(cache, layers: Layers = None, *, stack: str | None = None) -> Float[Tensor, "layer *batch head key"]:
    """‖f(x)‖, the length of each head's value-transformed vector (Kobayashi et al. 2020, §3).

    Args:
        cache: an ActivationCache
        layers: one layer, several, or None for all

    Returns:
        [layer batch head key], in the units of the residual stream.

    Raises:
        MissingActivationError, UnknownLayerError

    Example:
        >>> tl_norms.value_norms(cache).mean(-1)                                # doctest: +SKIP
    """
    analysis = _Analysis.of(cache, ("attn",), layers, None, stack)
    rows = [head_norms(triangles(analysis.mixture(block)[0])) for block in analysis.blocks]
    return analysis.stacked(rows)


def weighted_value_norms(
    cache, layers: Layers = None, *, stack: str | None = None
) -> Float[Tensor, "layer *batch head query key"]:
    """‖αf(x)‖, what each head moves from key to query (Kobayashi et al. 2020, Eq. 4).

    Args:
        cache: an ActivationCache
        layers: one layer, several, or None for all

    Returns:
        [layer batch head query key], in the units of the residual stream.

    Raises:
        MissingActivationError, UnknownLayerError

    Example:
        >>> tl_norms.weighted_value_norms(cache, layers=[3])                    # doctest: +SKIP
    """
    analysis = _Analysis.of(cache, ("attn",), layers, None, stack)
    rows = []
    for block in analysis.blocks:
        mixture, _ = analysis.mixture(block)
        rows.append(mixture.pattern * head_norms(triangles(mixture))[..., None, :])
    return analysis.stacked(rows)


def block_norms(
    cache,
    scopes: Scopes = None,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    stack: str | None = None,
    bias: steps.Bias = "player",
    max_memory: int | None = None,
    sketch: int | None = None,
    check: bool = True,
) -> BlockNorms:
    """Norm-based attention maps and mixing ratios of every layer and scope, from one cache.

    map[i, j] = ‖v_ij‖, where v_ij is what source j has put into position i after the steps of the scope:
    sum_h α^h_ij f^h(x_j) for `attn`, plus x_i on the diagonal for `attn_res`, through the layer norm for `attn_res_ln`,
    and so on (Kobayashi et al. 2020, 2021; 2024 for scopes with `ff`). For every scope the parts are summed and
    compared with the model's own activation.

    Args:
        cache: an ActivationCache of a TransformerBridge, HookedTransformer or HookedEncoder
        scopes: one scope, several, "all", or None: all up to and including the attention block
        layers: one layer, several, or None for all
        mask: attention mask, [batch pos], True or 1 at real tokens; needed if the batch is padded
        stack: which stack of blocks, "encoder" for that of an encoder-decoder; None for the only one
        bias: how the feed-forward treats biases, see `ffn_maps`
        max_memory: bytes that scopes with `ff` may use beyond their result; None for half of what is free
        sketch: estimate maps of scopes with `ff` from this many random directions, see `ffn_maps`
        check: raise if a scope is not complete; False keeps the error in the result only

    Returns:
        BlockNorms: `norms[scope]` [layer batch query key], `norms.mixing_ratio(scope)` [layer batch query], ...

    Raises:
        DecompositionError: the parts of a scope do not add up to the model's activation.
        MissingActivationError, UnknownScopeError, UnknownLayerError, MaskError, NonFiniteError, NotACacheError,
        UnsupportedArchitectureError, MemoryBudgetError

    Example:
        >>> _, cache = model.run_with_cache("The keys to the cabinet are on the table.")  # doctest: +SKIP
        >>> norms = tl_norms.block_norms(cache)                                 # doctest: +SKIP
        >>> norms.mixing_ratio("attn_res").mean()                               # doctest: +SKIP
    """
    analysis = _Analysis.of(cache, scopes, layers, mask, stack)
    results = [analysis.layer(block, bias, max_memory, sketch, check) for block in analysis.blocks]
    return analysis.collected(results, sketch)


def ffn_maps(
    cache,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    stack: str | None = None,
    bias: steps.Bias = "player",
    max_memory: int | None = None,
    sketch: int | None = None,
    check: bool = True,
) -> BlockNorms:
    """Attention maps through the feed-forward block, with the map before it (Kobayashi et al. 2024).

    The pre-activation u_i = sum_j z_ij + z^r_i is shared out by integrated gradients from a zero baseline: source j
    gets (z_ij (g(u_i) - g(0)) / u_i) W_out, with the corresponding closed form for gated feed-forwards.

    Args:
        cache, layers, mask, max_memory, check: as for `block_norms`
        bias: "player": the biases move along the path like a source of their own, whose share goes to the remainder:
            tokens share g(u) in proportion to their part of the whole pre-activation.
            "fixed": the biases stay and the path starts from them: tokens share g(u) - g(bias), all that they changed.
        sketch: estimate the maps from this many random directions instead of all of d_model, unbiased, with
            `norms.standard_error(scope)`; about sqrt(1 / 2k) of each entry (9 % at 64). For long sequences where exact
            maps cost too much; not for comparing single entries, nor where k is near d_model and nothing is gained.

    Returns:
        BlockNorms of the scopes with `ff` and the one before them.

    Raises:
        UnsupportedArchitectureError: an activation that is not elementwise, or weights that cannot be read.
        MemoryBudgetError: max_memory is below one pair. Otherwise as `block_norms`.

    Example:
        >>> maps = tl_norms.ffn_maps(cache, layers=[3])                         # doctest: +SKIP
        >>> maps["attn_res_ln_ff"] - maps["attn_res_ln"]                        # doctest: +SKIP
    """
    check_cache(cache)
    chain = _chain(reader_of(cache.model, stack))
    first = next(n for n, scope in enumerate(chain) if "ff" in scope.split("_"))
    return block_norms(
        cache,
        chain[max(first - 1, 0) :],
        layers=layers,
        mask=mask,
        stack=stack,
        bias=bias,
        max_memory=max_memory,
        sketch=sketch,
        check=check,
    )


def decompose(
    cache,
    layer: int,
    scope: str,
    *,
    mask: Tensor | None = None,
    stack: str | None = None,
    bias: steps.Bias = "player",
    max_memory: int | None = None,
    check: bool = True,
) -> Decomposition:
    """The source vectors of one layer and scope themselves, formed lazily.

    sum_j vectors[i, j] + remainder[i] = total[i], the model's own activation.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end
        scope: a scope of the model, or a paper's name for it
        mask, bias, max_memory, check: as for `block_norms`

    Returns:
        Decomposition: `.vectors(query, key)` [batch query key d_model], `.remainder` and `.total()`
        [batch query d_model], `.norms()` [batch query key], `.mixing_ratio()` [batch query], `.error`.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.decompose(cache, layer=3, scope="attn_res").vectors(query=5)   # doctest: +SKIP
    """
    analysis = _Analysis.of(cache, scope, layer, mask, stack)
    (block,) = analysis.blocks
    (resolved,) = analysis.scopes
    sources = analysis.walk(block, analysis.mixture(block), bias)[block.point(resolved)]
    error = analysis.error(block, resolved, sources, check)
    memory = max_memory or free_memory(sources.own.device)
    activations = analysis.activations
    return Decomposition(block.layer, resolved, error, sources, activations.has_batch, activations.mask, memory)


def extend_cache(cache, scopes: Scopes = None, *, mask: Tensor | None = None, stack: str | None = None):
    """A new cache that also holds the maps, under TransformerLens-style names.

    Args:
        cache: an ActivationCache; its entries are shared, not copied, and it is not changed
        scopes, mask: as for `block_norms`

    Returns:
        ActivationCache with "blocks.{layer}.hook_norm_{scope}" [batch query key] and
        "blocks.{layer}.hook_mixing_ratio_{scope}" [batch query] added, so that cache["norm_attn_res", 3] works.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.extend_cache(cache).stack_activation("norm_attn_res").shape    # doctest: +SKIP
    """
    norms = block_norms(cache, scopes, mask=mask, stack=stack)
    prefix = f"{stack}_blocks" if stack else "blocks"
    entries = dict(cache.cache_dict)
    for scope in norms.scopes:
        for row, layer in enumerate(norms.layers):
            entries[f"{prefix}.{layer}.hook_norm_{scope}"] = norms[scope][row]
            entries[f"{prefix}.{layer}.hook_mixing_ratio_{scope}"] = norms.mixing_ratio(scope)[row]
    return type(cache)(entries, cache.model, has_batch_dim=cache.has_batch_dim)


@dataclass(frozen=True)
class _Layer:
    """The numbers of one layer."""

    maps: dict[str, Tensor]
    ratios: dict[str, Tensor]
    errors: dict[str, float]
    value_norms: Tensor
    pattern: Tensor
    causal: bool


@dataclass(frozen=True)
class _Analysis:
    """One cache, with what is to be computed of it."""

    reader: Reader
    activations: Activations
    blocks: list[Block]
    scopes: tuple[str, ...]
    chain: tuple[str, ...]
    skipped: tuple[int, ...]
    processing: tuple[str, ...]

    @classmethod
    def of(cls, cache, scopes: Scopes, layers: Layers, mask: Tensor | None, stack: str | None) -> "_Analysis":
        check_cache(cache)
        reader = reader_of(cache.model, stack)
        blocks, skipped = _chosen_blocks(reader, layers)
        chain = _chain(reader)
        found = processing.detect(reader, blocks)
        processing.warn_once(reader.model, found)
        activations = Activations(cache, reader, mask)
        return cls(reader, activations, blocks, _chosen_scopes(scopes, chain), chain, skipped, found)

    def mixture(self, block: Block) -> tuple[Mixture, Tensor | None]:
        """The heads of one block before any sum, v_j W_O per head, and the output bias."""
        step = block.attention()[1]
        output = self.reader.attention_output(step)
        pattern, values = self.activations.attention(step, output.weight.shape[0])
        output = _like(output, values)
        return Mixture(pattern, values, output.weight.unflatten(0, (pattern.shape[1], -1))), output.bias

    def walk(self, block: Block, heads: tuple[Mixture, Tensor | None], bias: steps.Bias) -> dict[int, Sources]:
        """Take the steps of one block that the scopes need; the source vectors at every point made."""
        points: dict[int, Sources] = {}
        if block.reads_stream(self.scopes):
            points[0] = steps.start(self.activations.vectors(block.stream))
        for number in block.needed(self.scopes):
            step = block.steps[number - 1]
            if isinstance(step.operation, Attention):
                points[number] = self._attend(step.operation, *heads)
            else:
                points[number] = self._take(step.operation, points[step.reads], points, bias)
        return points

    def _attend(self, operation: Attention, mixture: Mixture, bias: Tensor | None) -> Sources:
        gate = self.activations.gate(operation, mixture.values)
        if operation.inner_norm is None:
            return steps.attend(mixture, bias, gate=gate)
        # the first form of the inner norm that gives the cached output: all are tried on the mixed values
        made = [
            steps.attend(mixture, bias, gate=gate, inner=_inner(form, mixture.values))
            for form in self.reader.inner_norm(operation)
        ]
        return self._closest(made, Truth((operation.output,)))

    def _take(self, operation: Operation, sources: Sources, points: dict[int, Sources], bias: steps.Bias) -> Sources:
        if isinstance(operation, Norm):
            return self._normalise(operation, sources)
        if isinstance(operation, FeedForward):
            return self._feed_forward(operation, sources, bias)
        assert isinstance(operation, Add)
        made = steps.add(
            steps.times(sources, operation.scale), steps.times(points[operation.other], operation.other_scale)
        )
        for hook, scale in operation.beside:
            made = replace(made, rest=made.rest + scale * self.activations.vectors(hook))
        return made

    def _normalise(self, operation: Norm, sources: Sources) -> Sources:
        full = sources.total
        made = [
            steps.normalise(
                sources, full, center=form.center, eps=form.eps, gain=_cast(form.gain, full), beta=_cast(form.beta, full)
            )
            for form in self.reader.norm_forms(operation)
        ]
        return self._closest(made, operation.output)

    def _closest(self, made: list[Sources], truth: Truth | None) -> Sources:
        """The form whose total is nearest the model's activation."""
        if len(made) == 1 or truth is None:
            return made[0]
        found = self.activations.truth(truth)
        return min(made, key=lambda sources: float((sources.total - found).norm()))

    def _feed_forward(self, operation: FeedForward, sources: Sources, bias: steps.Bias) -> Sources:
        full = sources.total
        found = None if operation.output is None else self.activations.truth(operation.output)
        parts = self.reader.feed_forward(operation, full, found)
        made = [steps.feed_forward(sources, full, _unit(part, full), bias) for part in parts]
        return reduce(steps.add, made)

    def layer(
        self, block: Block, bias: steps.Bias, max_memory: int | None, sketch: int | None, check: bool
    ) -> _Layer:
        """All numbers of one layer."""
        heads = self.mixture(block)
        points = self.walk(block, heads, bias)
        decomposed = {scope: points[block.point(scope)] for scope in self.scopes}
        errors = {scope: self.error(block, scope, sources, check) for scope, sources in decomposed.items()}
        number, attention = block.attention()
        shared = Shared()
        values = head_norms(shared.triangle(heads[0]))
        lengths = {}
        for scope, sources in decomposed.items():
            memory = max_memory or free_memory(sources.own.device)
            lengths[scope] = source_norms(sources, max_memory=memory, shared=shared, sketch=sketch)
        return _Layer(
            maps=lengths,
            ratios={scope: sources.mixing_ratio() for scope, sources in decomposed.items()},
            errors=errors,
            value_norms=values,
            pattern=self.activations.tensor(attention.pattern),
            causal=points[number].causal,
        )

    def error(self, block: Block, scope: str, sources: Sources, check: bool) -> float:
        """|total - activation| relative to the largest of the vectors involved, at the worst position.

        nan if this scope's activation is not hooked by TransformerLens.
        """
        truth = block.steps[block.point(scope) - 1].truth
        if truth is None:
            return float("nan")
        total, found = sources.total, self.activations.truth(truth)
        sizes = [part.norm(dim=-1) for part in (sources.off, sources.own, sources.rest)]
        if truth.through is not None:  # compare a few of the neurons it is mapped to
            projection = _like(self.reader.projection(truth.through), total)
            weight, columns = projection.weight[:, :_COLUMNS], slice(0, _COLUMNS)
            total, found = total @ weight, found[..., columns]
            total = total if projection.bias is None else total + projection.bias[columns]
            sizes = [total.norm(dim=-1)]
        size = torch.stack([*sizes, found.norm(dim=-1)]).amax(0)
        relative = (total - found).norm(dim=-1) / size.clamp_min(torch.finfo(size.dtype).tiny)
        if self.activations.mask is not None:
            relative = relative[self.activations.mask.to(relative.device)]
        error = float(relative.max()) if relative.numel() else 0.0
        tolerance = TOLERANCE[self.activations.coarsest]
        if check and not error <= tolerance:
            raise DecompositionError(
                f"layer {block.layer}, scope {scope!r}: the parts miss {' + '.join(truth.plus)} by {error:.1e} "
                f"(tolerance {tolerance:.0e}). Likely causes: the model's weights or device changed after the cache was "
                f"made; a hook edited an activation inside the block during the run; the model was in training mode "
                f"(call model.eval()). If none applies, the block is not understood: please report it with "
                f"tl_norms.scopes(model) and the model's name."
            )
        return error

    def stacked(self, rows: list[Tensor]) -> Tensor:
        """One tensor [layer ...] on the first layer's device, without batch axis if the cache has none."""
        return torch.stack([(row if self.activations.has_batch else row[0]).to(rows[0].device) for row in rows])

    def collected(self, layers: list[_Layer], sketch: int | None) -> BlockNorms:
        """The layers as one result."""
        activations = self.activations
        mask = activations.mask
        if mask is not None and not activations.has_batch:
            mask = mask[0]
        return BlockNorms(
            scopes=self.scopes,
            layers=tuple(block.layer for block in self.blocks),
            maps={scope: self.stacked([layer.maps[scope] for layer in layers]) for scope in self.scopes},
            mixing_ratios={scope: self.stacked([layer.ratios[scope] for layer in layers]) for scope in self.scopes},
            value_norms=self.stacked([layer.value_norms for layer in layers]),
            patterns=tuple(layer.pattern if activations.has_batch else layer.pattern[0] for layer in layers),
            error={scope: torch.tensor([layer.errors[scope] for layer in layers]) for scope in self.scopes},
            processing=self.processing,
            skipped=self.skipped,
            causal=all(layer.causal for layer in layers),
            mask=mask,
            chain=self.chain,
            sketch=sketch,
        )


def _chain(reader: Reader) -> tuple[str, ...]:
    blocks = [block for block in reader.blocks() if block is not None]
    if not blocks:
        raise UnsupportedArchitectureError(
            f"{type(reader.model).__name__} has no layer with attention, so there are no sources to tell apart."
        )
    return blocks[0].scopes


def _chosen_scopes(scopes: Scopes, chain: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes asked for, in the order of the chain."""
    if scopes is None:
        scopes = [scope for scope in chain if "ff" not in scope.split("_")]
        if not is_post_norm(chain):  # the norm behind the residual is the feed-forward's
            scopes = [scope for scope in scopes if not scope.endswith("_res_ln")]
    elif isinstance(scopes, str):
        scopes = chain if scopes == "all" else [scopes]
    wanted = {resolve_scope(scope, chain) for scope in scopes}
    return tuple(scope for scope in chain if scope in wanted)


def _chosen_blocks(reader: Reader, layers: Layers) -> tuple[list[Block], tuple[int, ...]]:
    """The blocks asked for, and the layers that have no attention."""
    blocks = reader.blocks()
    skipped = tuple(number for number, block in enumerate(blocks) if block is None)
    if layers is None:
        return [block for block in blocks if block is not None], skipped
    chosen = []
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -len(blocks) <= layer < len(blocks):
            raise UnknownLayerError(f"there is no layer {layer}: this model has layers 0 to {len(blocks) - 1}.")
        block = blocks[layer]
        if block is None:
            raise UnknownLayerError(f"layer {layer} has no attention; these layers have none: {skipped}.")
        chosen.append(block)
    return chosen, ()


def _cast(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device=like.device, dtype=like.dtype)


def _inner(form: NormForm | None, like: Tensor) -> steps.InnerNorm | None:
    return None if form is None else steps.InnerNorm(form.center, form.eps, _cast(form.gain, like))


def _unit(weights: FeedForwardWeights, like: Tensor) -> steps.Unit:
    """A feed-forward in the dtype and on the device of the activations."""
    return steps.Unit(
        into=_like(weights.into, like),
        up=None if weights.up is None else _like(weights.up, like),
        out=_like(weights.out, like),
        activation=weights.activation,
        up_offset=weights.up_offset,
        limit=weights.limit,
        inner=_inner(weights.inner, like),
        scale_in=_cast(weights.scale_in, like),
        scale_out=_cast(weights.scale_out, like),
    )


def _like(affine: Affine, like: Tensor) -> steps.Projection:
    """Weights in the dtype and on the device of the activations."""
    weight = _cast(affine.weight, like)
    assert weight is not None
    return steps.Projection(weight, _cast(affine.bias, like))
