"""The public functions: from a cache to numbers.

Plan            which model, blocks, scopes and options            (plan, options, blocks/)
FrozenBlock     the steps of a block, held                         (freeze, linear/)
completed       source vectors through them, compared              (complete, linear/carry)
layer_numbers   the numbers of one layer                           (layer_numbers, linear/measure)
                or of several of one shape at once                 (joined_layers, linear/joined)
BlockNorms      what comes out                                     (results)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Unpack

from .blocks.activations import Activations, check_cache
from .complete import Completed, completed
from .decomposition import Decomposition
from .errors import UnknownOptionError, UnknownScopeError
from .freeze import FrozenBlock
from .held_run import attribution_hooks
from .joined_layers import numbers_of_layers
from .labels import Strings, model_name, strings_of_run
from .layer_numbers import collected, heads_of, stacked
from .linear.carry.terms import Mixture
from .linear.edits import Edits
from .linear.measure.factors import head_norms
from .options import AnalysisOptions, Layers, Options, Scopes, one_layer
from .plan import Plan, chain_of, chosen_blocks, chosen_scopes, reader_of
from .results import BlockNorms
from .targets import Target


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
    model: nn.Module,
    scopes: Scopes = None,
    layers: Layers = None,
    *,
    stack: str | None = None,
    target: Target | Sequence[Target] | None = None,
    edits: Edits = "refuse",
) -> list[str]:
    """The activations that an analysis needs, as a `names_filter` for `run_with_cache`.

    Args:
        model: the model that will be run
        scopes: as for `block_norms`; None for the attention block
        layers: one layer, several, or None for all
        target: what `attribute` or `propagate` will be asked for; the whole model is needed then, and scopes and layers
            are not
        edits: as for the analysis that follows: "replace" and "add" also need the activations in which a hook's change
            of the run would show

    Returns:
        Hook names. A cache of exactly these serves every function of this package for the same scopes and layers.

    Raises:
        UnknownScopeError, UnknownLayerError: not in this model. UnknownOptionError: no such way to treat edits.

    Example:
        >>> names = tl_norms.required_hooks(model, layers=[0])                  # doctest: +SKIP
        >>> _, cache = model.run_with_cache("A sentence.", names_filter=names)  # doctest: +SKIP
    """
    changed = Options.of(edits=edits).edits != "refuse"
    if target is not None:
        return attribution_hooks(model, edits=changed)
    reader = reader_of(model, stack)
    blocks, _ = chosen_blocks(reader, layers)
    chosen = chosen_scopes(scopes, chain_of(reader))
    return list(dict.fromkeys(name for block in blocks for name in block.hooks(chosen, edits=changed)))


@torch.no_grad()
def value_vectors(
    cache, layer: int, *, stack: str | None = None, mask: Tensor | None = None, check: bool = True
) -> Float[Tensor, "*batch head key d_model"]:
    """The value-transformed vectors f(x) = (x W_V + b_V) W_O of one layer, per head.

    Their sum by the pattern, Σ_hj α^h_ij f^h(x_j) + b_O, is compared with what attention wrote.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end
        stack, mask, check: as for `block_norms`

    Returns:
        [batch head key d_model]. b_V is part of f, b_O is not (Kobayashi et al. 2020, Eq. 3).

    Raises:
        MissingActivationError: the cache lacks the values, the pattern or what attention wrote.
        DecompositionError: they do not add up.

    Example:
        >>> tl_norms.value_vectors(cache, 0).shape                              # doctest: +SKIP
        torch.Size([1, 12, 9, 384])
    """
    ((heads,), has_batch) = _heads(cache, layers=one_layer(layer), stack=stack, mask=mask, check=check)
    vectors = torch.stack([heads.head_vectors(b, slice(None)) for b in range(len(heads.values))])
    return vectors if has_batch else vectors[0]


@torch.no_grad()
def value_norms(
    cache, layers: Layers = None, *, stack: str | None = None, mask: Tensor | None = None, check: bool = True
) -> Float[Tensor, "layer *batch head key"]:
    """‖f(x)‖, the norm of each head's value-transformed vector (Kobayashi et al. 2020, §3).

    Args:
        cache: an ActivationCache
        layers: one layer, several, or None for all
        stack, mask, check: as for `block_norms`

    Returns:
        [layer batch head key], in the units of the residual stream.

    Raises:
        MissingActivationError, UnknownLayerError; DecompositionError: Σ α f(x) + b_O is not what attention wrote.

    Example:
        >>> tl_norms.value_norms(cache).mean(-1)                                # doctest: +SKIP
    """
    heads, has_batch = _heads(cache, layers=layers, stack=stack, mask=mask, check=check)
    return stacked([head_norms(mixture) for mixture in heads], has_batch)


@torch.no_grad()
def weighted_value_norms(
    cache, layers: Layers = None, *, stack: str | None = None, mask: Tensor | None = None, check: bool = True
) -> Float[Tensor, "layer *batch head query key"]:
    """‖αf(x)‖, what each head moves from key to query (Kobayashi et al. 2020, Eq. 4).

    Args:
        cache: an ActivationCache
        layers: one layer, several, or None for all
        stack, mask, check: as for `block_norms`

    Returns:
        [layer batch head query key], in the units of the residual stream.

    Raises:
        MissingActivationError, UnknownLayerError; DecompositionError: Σ α f(x) + b_O is not what attention wrote.

    Example:
        >>> tl_norms.weighted_value_norms(cache, layers=[3])                    # doctest: +SKIP
    """
    heads, has_batch = _heads(cache, layers=layers, stack=stack, mask=mask, check=check)
    return stacked([mixture.pattern * head_norms(mixture)[..., None, :] for mixture in heads], has_batch)


def _heads(cache, **options) -> tuple[list[Mixture], bool]:
    """The heads of every layer, once what they write is compared with the model's attention."""
    plan, activations = Plan.of_cache(cache, "attn", **options)
    heads = []
    for block in plan.blocks:
        frozen = FrozenBlock(plan.reader, activations, block)
        heads.append(heads_of(frozen, list(completed(frozen, plan.scopes, plan.options.check))))
    return heads, activations.has_batch


@torch.no_grad()
def block_norms(cache, scopes: Scopes = None, **options: Unpack[AnalysisOptions]) -> BlockNorms:
    """Norm-based attention maps and mixing ratios of every layer and scope, from one cache.

    map[i, j] = ‖v_ij‖, where v_ij is what source j has put into position i after the steps of the scope:
    sum_h α^h_ij f^h(x_j) for `attn`, plus x_i on the diagonal for `attn_res`, through the layer norm for `attn_res_ln`,
    and so on (Kobayashi et al. 2020, 2021; 2024 for scopes with `ff`). For every scope the parts are summed and
    compared with the model's own activation.

    Args:
        cache: an ActivationCache of a TransformerBridge, HookedTransformer or HookedEncoder
        scopes: one scope, several, "all", or None: all up to and including the attention block
        **options: layers, mask, source_mask, stack, bias, ff, measure, max_memory, sketch, check, edits, tokens, see
            `AnalysisOptions`

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
    plan, activations = Plan.of_cache(cache, scopes, **options)
    layers = numbers_of_layers(plan, activations, range(len(plan.blocks)))
    return collected(plan, layers, activations)


def ffn_maps(cache, **options: Unpack[AnalysisOptions]) -> BlockNorms:
    """Attention maps through the feed-forward block, with the map before it (Kobayashi et al. 2024).

    The pre-activation u_i = sum_j z_ij + z^r_i is shared out by integrated gradients from a zero baseline: source j
    gets (z_ij (g(u_i) - g(0)) / u_i) W_out, with the corresponding closed form for gated feed-forwards.

    Args:
        cache, **options: as for `block_norms`

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
    chain = chain_of(reader_of(cache.model, options.get("stack")))
    first = next((n for n, scope in enumerate(chain) if "ff" in scope.split("_")), None)
    if first is None:
        raise UnknownScopeError(
            f"{type(cache.model).__name__} has no feed-forward; its chain is {', '.join(chain)}. "
            f"Call tl_norms.block_norms(cache)."
        )
    return block_norms(cache, chain[max(first - 1, 0) :], **options)


@torch.no_grad()
def decompose(cache, layer: int, scope: str, **options: Unpack[AnalysisOptions]) -> Decomposition:
    """The source vectors of one layer and scope themselves, formed lazily.

    sum_j vectors[i, j] + remainder[i] = total[i], the model's own activation.

    Args:
        cache: an ActivationCache
        layer: its number, negative from the end
        scope: a scope of the model, or a paper's name for it
        **options: as for `block_norms`, but layers, sketch and measure

    Returns:
        Decomposition: `.vectors(query, key)` [batch query key d_model], `.remainder` and `.total()`
        [batch query d_model], `.norms()` and `.measure(...)` [batch query key], `.mixing_ratio()` [batch query],
        `.error`.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.decompose(cache, layer=3, scope="attn_res").vectors(query=5)   # doctest: +SKIP
    """
    check_cache(cache)
    chain = chain_of(reader_of(cache.model, options.get("stack")))
    if not isinstance(scope, str) or scope == "all":
        raise UnknownScopeError(f"scope is {scope!r}; expected one of {', '.join(chain)}.")
    for name in ("layers", "sketch"):
        if options.get(name) is not None:
            raise UnknownOptionError(f"decompose takes no {name}=: its vectors are exact, and of one layer.")
    if "measure" in options:
        raise UnknownOptionError("decompose takes no measure=: call .measure(...) of what it returns.")
    plan, activations = Plan.of_cache(cache, scope, **{**options, "layers": one_layer(layer)})
    (block,) = plan.blocks
    frozen = FrozenBlock(plan.reader, activations, block, plan.options.bias, plan.options.edits, plan.options.ff)
    (made,) = completed(frozen, plan.scopes, plan.options.check)
    return Decomposition(
        block.layer,
        made.scope,
        float(made.error),
        made.sources,
        activations.has_batch,
        activations.mask,
        plan.options.max_memory,
        activations.source_mask,
        *_strings(plan, activations, made),
        model_name(cache.model),
    )


def _strings(plan: Plan, activations: Activations, made: Completed) -> tuple[Strings | None, Strings | None]:
    """What the positions of a decomposition, and those of the encoder, are called."""
    (n_texts, n, _), n_keys = made.sources.own.shape, made.sources.n_keys
    n_source = 0 if made.sources.cross is None else n_keys - (0 if made.sources.past else n)
    reader, given = plan.reader, plan.options.tokens
    shape = (n_texts, n, n_source)
    return strings_of_run(activations.tensors, reader.model, reader.stack, given, activations.mask, shape)


def _only_lengths(options: Mapping[str, Any], who: str) -> None:
    if options.get("measure", "l2") != "l2":
        raise UnknownOptionError(f"measure={options['measure']!r} does not go with {who}. Leave measure out.")


def extend_cache(cache, scopes: Scopes = None, **options: Unpack[AnalysisOptions]):
    """A new cache that also holds the maps, under TransformerLens-style names.

    Args:
        cache: an ActivationCache; its entries are shared, not copied, and it is not changed
        scopes, **options: as for `block_norms`

    Returns:
        ActivationCache with "blocks.{layer}.hook_norm_{scope}" [batch query key] and
        "blocks.{layer}.hook_mixing_ratio_{scope}" [batch query] added, so that cache["norm_attn_res", 3] works.

    Raises:
        As `block_norms`.

    Example:
        >>> tl_norms.extend_cache(cache).stack_activation("norm_attn_res").shape    # doctest: +SKIP
    """
    _only_lengths(options, "extend_cache: its hooks are called hook_norm_...")
    norms = block_norms(cache, scopes, **options)
    prefix = reader_of(cache.model, options.get("stack")).stack
    entries = dict(cache.cache_dict)
    for scope in norms.scopes:
        for row, layer in enumerate(norms.layers):
            entries[f"{prefix}.{layer}.hook_norm_{scope}"] = norms[scope][row]
            entries[f"{prefix}.{layer}.hook_mixing_ratio_{scope}"] = norms.mixing_ratio(scope)[row]
    return type(cache)(entries, cache.model, has_batch_dim=cache.has_batch_dim)
