"""The public functions: from a cache to numbers.

Plan            which model, blocks and scopes                     (plan, blocks/)
Walk            the steps of a block, on source vectors, checked   (walk, linear/)
layer_norms     the numbers of one layer                           (layers)
BlockNorms      what comes out                                     (results)
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks.activations import Activations, check_cache
from .decomposition import Decomposition
from .errors import UnknownScopeError
from .layers import collected, layer_norms, stacked
from .linear.factors import head_norms
from .linear.steps import Bias
from .plan import Layers, Plan, Scopes, chain_of, chosen_blocks, chosen_scopes, reader_of
from .results import BlockNorms
from .walk import Walk


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
    return chain_of(reader_of(model, stack))


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
    blocks, _ = chosen_blocks(reader, layers)
    chosen = chosen_scopes(scopes, chain_of(reader))
    return list(dict.fromkeys(name for block in blocks for name in block.hooks(chosen)))


@torch.no_grad()
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
    (walk,) = _walks(cache, layer, stack)
    mixture, _ = walk.heads()
    vectors = torch.stack([mixture.head_vectors(b, slice(None)) for b in range(len(mixture.values))])
    return vectors if walk.activations.has_batch else vectors[0]


@torch.no_grad()
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
    walks = _walks(cache, layers, stack)
    rows = [head_norms(walk.heads()[0]) for walk in walks]
    return stacked(rows, walks[0].activations.has_batch)


@torch.no_grad()
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
    walks = _walks(cache, layers, stack)
    rows = []
    for walk in walks:
        mixture, _ = walk.heads()
        rows.append(mixture.pattern * head_norms(mixture)[..., None, :])
    return stacked(rows, walks[0].activations.has_batch)


def _walks(cache, layers: Layers, stack: str | None) -> list[Walk]:
    check_cache(cache)
    reader = reader_of(cache.model, stack)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader)
    return [Walk(reader, activations, block) for block in chosen_blocks(reader, layers)[0]]


@torch.no_grad()
def block_norms(
    cache,
    scopes: Scopes = None,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
    bias: Bias = "player",
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
        source_mask: in a decoder with cross-attention, the encoder's attention mask, [batch pos]
        stack: which stack of blocks: "decoder" (the default) or "encoder" of an encoder-decoder; None for the only one
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
    check_cache(cache)
    plan = Plan.of(cache.model, scopes, layers, stack, bias=bias, max_memory=max_memory, sketch=sketch, check=check)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, plan.reader, mask, source_mask)
    layers_ = [layer_norms(plan, Walk(plan.reader, activations, block, bias)) for block in plan.blocks]
    return collected(plan, layers_, activations)


def ffn_maps(
    cache,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
    bias: Bias = "player",
    max_memory: int | None = None,
    sketch: int | None = None,
    check: bool = True,
) -> BlockNorms:
    """Attention maps through the feed-forward block, with the map before it (Kobayashi et al. 2024).

    The pre-activation u_i = sum_j z_ij + z^r_i is shared out by integrated gradients from a zero baseline: source j
    gets (z_ij (g(u_i) - g(0)) / u_i) W_out, with the corresponding closed form for gated feed-forwards.

    Args:
        cache, layers, mask, source_mask, stack, max_memory, check: as for `block_norms`
        bias: "player": the biases move along the path like a source of their own, whose share goes to the remainder:
            tokens share g(u) in proportion to their part of the whole pre-activation.
            "fixed": the biases stay and the path starts from them: tokens share g(u) - g(bias), all that they changed.
        sketch: estimate the maps from this many random directions instead of all of d_model, unbiased, with
            `norms.standard_error(scope)`; about sqrt(1 / 2k) of each entry (9 % at 64). For long sequences where exact
            maps cost too much; not for comparing single entries, nor where k is near d_model and nothing is gained.

    Returns:
        BlockNorms of the scopes with `ff` and the one before them.

    Raises:
        UnknownScopeError: the model has no feed-forward.
        UnsupportedArchitectureError: an activation that is not elementwise, or weights that cannot be read.
        MemoryBudgetError: max_memory is below one pair. Otherwise as `block_norms`.

    Example:
        >>> maps = tl_norms.ffn_maps(cache, layers=[3])                         # doctest: +SKIP
        >>> maps["attn_res_ln_ff"] - maps["attn_res_ln"]                        # doctest: +SKIP
    """
    check_cache(cache)
    chain = chain_of(reader_of(cache.model, stack))
    first = next((n for n, scope in enumerate(chain) if "ff" in scope.split("_")), None)
    if first is None:
        raise UnknownScopeError(
            f"{type(cache.model).__name__} has no feed-forward; its chain is {', '.join(chain)}. "
            f"Call tl_norms.block_norms(cache)."
        )
    return block_norms(
        cache,
        chain[max(first - 1, 0) :],
        layers=layers,
        mask=mask,
        source_mask=source_mask,
        stack=stack,
        bias=bias,
        max_memory=max_memory,
        sketch=sketch,
        check=check,
    )


@torch.no_grad()
def decompose(
    cache,
    layer: int,
    scope: str,
    *,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
    bias: Bias = "player",
    max_memory: int | None = None,
    check: bool = True,
) -> Decomposition:
    """The source vectors of one layer and scope themselves, formed lazily.

    sum_j vectors[i, j] + remainder[i] = total[i], the model's own activation.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end
        scope: a scope of the model, or a paper's name for it
        mask, source_mask, stack, bias, max_memory, check: as for `block_norms`

    Returns:
        Decomposition: `.vectors(query, key)` [batch query key d_model], `.remainder` and `.total()`
        [batch query d_model], `.norms()` [batch query key], `.mixing_ratio()` [batch query], `.error`.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.decompose(cache, layer=3, scope="attn_res").vectors(query=5)   # doctest: +SKIP
    """
    check_cache(cache)
    plan = Plan.of(cache.model, scope, layer, stack, bias=bias)
    (block,), (resolved,) = plan.blocks, plan.scopes
    activations = Activations(cache.cache_dict, cache.has_batch_dim, plan.reader, mask, source_mask)
    walk = Walk(plan.reader, activations, block, bias)
    ((_, sources, error),) = walk.decomposed(plan.scopes, check)
    return Decomposition(
        block.layer,
        resolved,
        error,
        sources,
        activations.has_batch,
        activations.mask,
        max_memory,
        activations.source_mask,
    )


def extend_cache(
    cache,
    scopes: Scopes = None,
    *,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    stack: str | None = None,
):
    """A new cache that also holds the maps, under TransformerLens-style names.

    Args:
        cache: an ActivationCache; its entries are shared, not copied, and it is not changed
        scopes, mask, source_mask, stack: as for `block_norms`

    Returns:
        ActivationCache with "blocks.{layer}.hook_norm_{scope}" [batch query key] and
        "blocks.{layer}.hook_mixing_ratio_{scope}" [batch query] added, so that cache["norm_attn_res", 3] works.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.extend_cache(cache).stack_activation("norm_attn_res").shape    # doctest: +SKIP
    """
    norms = block_norms(cache, scopes, mask=mask, source_mask=source_mask, stack=stack)
    prefix = reader_of(cache.model, stack).stack
    entries = dict(cache.cache_dict)
    for scope in norms.scopes:
        for row, layer in enumerate(norms.layers):
            entries[f"{prefix}.{layer}.hook_norm_{scope}"] = norms[scope][row]
            entries[f"{prefix}.{layer}.hook_mixing_ratio_{scope}"] = norms.mixing_ratio(scope)[row]
    return type(cache)(entries, cache.model, has_batch_dim=cache.has_batch_dim)
