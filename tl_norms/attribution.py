"""Where does this logit come from? One backward pass: tokens, heads, edges, feed-forwards.

With the patterns, norm scales and feed-forward coefficients of the run held fixed, the whole model is an affine map.
A target's direction is carried back through it once; its product with the stream at each layer says what every position
there gives to the target, completely:

    value = sum_j <g^l_j, x^l_j> + offset[l]            for every cut l
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attribution_result import Attribution, DirectAttribution, shape_of
from .backward import carry_back
from .baseline import Baseline, references
from .credit_checks import raise_if_off, relative_error
from .held_run import map_of, run_keeping, strings_of_map
from .labels import Tokens, model_name
from .linear.carry.direction import by_key, direct_through
from .linear.edits import Edits
from .linear.hold import Rule
from .model_map import AttentionRule, ModelMap
from .names import is_post_norm
from .options import one_of
from .read_targets import read_targets, top_two
from .targets import Target, TargetError, logit


@torch.no_grad()
def attribute(
    cache,
    target: Target | Sequence[Target],
    *,
    attention: AttentionRule = "held",
    baseline: Baseline = None,
    ff: Rule = "ig",
    edits: Edits = "refuse",
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    tokens: Tokens | None = None,
    source_tokens: Tokens | None = None,
    check: bool = True,
) -> Attribution:
    """What every input token, head, edge and feed-forward gives to a target, exactly.

    g^l = (M^{T<-l})^T u, the target's direction u carried back to the stream entering layer l through the held map;
    stream[l, j] = <g^l_j, x^l_j>, tokens = stream[0]. Held fixed: attention patterns, norm scales, the feed-forwards'
    coefficients (integrated gradients from zero), gates and routers. Biases belong to no token: they are the offset.

    Cuts add up one by one; numbers of different layers do not add up with each other: what a head wrote contains what
    the layers before it wrote. A model whose norms were folded into its weights gives the same tokens, but its gains'
    and biases' shares move between offsets and heads. Where the run kept no outputs (HookedTransformer has no hook
    there), the value is what the model's own head gives now for the cached last stream.

    Args:
        cache: an ActivationCache with `required_hooks(model, target=target)`
        target: one target, or several, which give every field a leading axis
        attention: "held": patterns are constants, the answer says what was moved. "integrated": every softmax is
            integrated from zero logits and values, o_i = sum_j mean_ij v_j + sum_j s_ij B_ij, and a logit s_ij is
            shared half and half by its query and its key: the answer also says why it was moved. Both are complete
        baseline: a token (string or id) or a vector [d_model] or [pos d_model] of what enters the first layer; tokens
            then give <g_j, x_j - b_j>, and what the reference itself gives is in `offset[0]`. Later cuts are unchanged
        ff: how feed-forwards share what they write: "ig" (integrated gradients from zero), "half" (half of act(G) U to
            each branch), "gate" (act(G) held, all to the up branch), "drop" (nothing passes: all of it is offset)
        edits: of a run that hooks changed: "refuse", "replace" (a multiple scales what was there, anything else takes
            its place and belongs to the offset) or "add" (what was there stays, the difference is offset); with a full
            cache, or one of `required_hooks(model, target=..., edits=...)`. The result lists them
        mask: attention mask, [batch pos], needed if the batch is padded
        source_mask: the encoder's, of an encoder-decoder
        tokens: what to call the positions in tables and pictures: a list of strings, or one per text; by default the
            tokenizer's strings, if the cache holds the token ids
        source_tokens: the same for the encoder, of an encoder-decoder
        check: raise if a cut does not add up; False keeps the error in the result only

    Returns:
        Attribution: `value` [*batch], `tokens` [*batch pos], `stream` [cut *batch pos], `offset` [cut *batch],
        `error` [cut], `heads` [layer *batch head], `ffn`, `bypass` [layer *batch pos],
        `edges(layer)` [*batch head query key]; in the units of the target.

    Raises:
        DecompositionError: a cut misses the model's own value by more than rounding; nan included.
        TargetError: the target does not exist in this model or run, or is not affine.
        UnknownOptionError: tokens or another option that does not fit.
        MissingActivationError, UnsupportedArchitectureError, MaskError, NonFiniteError, NotACacheError

    Example:
        >>> target = tl_norms.logit(" are") - tl_norms.logit(" is")             # doctest: +SKIP
        >>> tl_norms.attribute(cache, target).tokens                            # doctest: +SKIP
    """
    one_of("check", check, (True, False))
    model_map, targets = _held(cache, target, ff, mask, source_mask, attention, edits)
    strings, source_strings = strings_of_map(cache, model_map, tokens, source_tokens)
    ending = read_targets(model_map, targets)
    credit = carry_back(model_map, ending, check, references(model_map, baseline))
    return Attribution.of(
        credit,
        target_names=tuple(t.name for t in targets),
        single=isinstance(target, Target),
        has_batch=model_map.activations.has_batch,
        token_strings=strings,
        source_strings=source_strings,
        model_name=model_name(cache.model),
        tolerance=model_map.stack.tolerance if check else float("inf"),
        edits=model_map.edits,
    )


@torch.no_grad()
def direct_attribution(
    cache,
    target: Target | Sequence[Target],
    *,
    attention: AttentionRule = "held",
    edits: Edits = "refuse",
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    check: bool = True,
) -> DirectAttribution:
    """What every writer puts into the last stream along the target: direct logit attribution, by source token.

    The direction is carried through the last norm and along the skip connections only, so that every writer (the
    embedding, each head by source token, each feed-forward) is measured against the same u; what reaches a target
    through later layers is credited to those layers. Unlike the cuts of `attribute`, all layers add up together.
    In post-norm models only the last block writes directly: the rest is `embed`, what enters it.

    Args:
        cache, target, edits, mask, source_mask, check: as for `attribute`; a target that reads the stream before the
            first layer that writes directly is refused. With edits, what a hook put in place of something is in the
            offset, but for what it put in place of a feed-forward's output, which is that layer's
        attention: "held" credits a key with what was moved from it; "integrated" also with what its logits did to the
            pattern (a sink's own logit is in the offset)

    Returns:
        DirectAttribution: `embed` [*batch], `heads` [layer *batch head key], `ffn` [layer *batch], `offset` [*batch],
        which add up to `value` [*batch].

    Raises:
        TargetError: also for a target that reads an earlier stream of a post-norm model.
        As `attribute`.

    Example:
        >>> tl_norms.direct_attribution(cache, tl_norms.logit(" are")).heads.sum(-1)   # doctest: +SKIP
    """
    one_of("check", check, (True, False))
    model_map, targets = _held(cache, target, "ig", mask, source_mask, attention, edits)
    ending = read_targets(model_map, targets)
    stack = model_map.stack
    chain = next(block.scopes for block in reversed(stack.reader.blocks()) if block is not None)
    first = stack.n_layers - 1 if is_post_norm(chain) else 0
    if min(ending.covectors) < first:
        raise TargetError(
            f"the target reads the stream entering layer {min(ending.covectors)}, but in a post-norm model only the "
            f"last layer writes directly: nothing before layer {first} is told apart. Call attribute(cache, target)."
        )
    g, offset = ending.at(stack.n_layers), ending.constant
    n, b = ending.value.shape
    heads: list[Tensor | None] = [None] * stack.n_layers
    crossing: list[Tensor | None] = [None] * stack.n_layers
    ffn = ending.value.new_zeros(stack.n_layers, n, b)
    for number in range(stack.n_layers - 1, first - 1, -1):
        layer = stack.layer(number)
        credit = direct_through(layer, g)
        offset = offset + credit.offset
        for row, attended, part in (
            (heads, credit.attended, layer.attention),
            (crossing, credit.crossed, layer.crossing),
        ):
            row[number] = None if attended is None or part is None else by_key(attended, part)
        for wrote in credit.feed_forwards:
            ffn[number] += wrote.by_position().sum(-1)
        g = credit.entering + (ending.covectors[number] if number in ending.covectors else 0)
    embed = (g * stack.stream(first)).sum(-1)
    own, crossed = (_filled(part, ending.value) for part in (heads, crossing))
    own = ending.value.new_zeros(stack.n_layers, n, b, 0, 0) if own is None else own
    parts = [embed, ffn.permute(1, 2, 0)]
    parts += [row.permute(1, 2, 0, 3, 4).flatten(2) for row in (own, crossed) if row is not None]
    error = relative_error(ending.value, offset, *parts)
    if check:
        raise_if_off(error, stack.tolerance, "the direct attribution", ending.names)
    single = isinstance(target, Target)

    def shape(value: Tensor, before: int) -> Tensor:
        return shape_of(value, before, single, model_map.activations.has_batch)

    strings, source_strings = strings_of_map(cache, model_map)
    return DirectAttribution(
        value=shape(ending.value, 0),
        embed=shape(embed.sum(-1), 0),
        heads=shape(own, 1),
        ffn=shape(ffn, 1),
        offset=shape(offset, 0),
        error=error[0] if single else error,
        source_heads=None if crossed is None else shape(crossed, 1),
        edits=model_map.edits,
        target_name=targets[0].name if single else tuple(t.name for t in targets),
        model_name=model_name(cache.model),
        token_strings=strings,
        source_strings=source_strings,
    )


def run_with_attribution(
    model: nn.Module,
    *model_args: Any,
    target: Target | Sequence[Target],
    attention: AttentionRule = "held",
    baseline: Baseline = None,
    ff: Rule = "ig",
    edits: Edits = "refuse",
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    tokens: Tokens | None = None,
    source_tokens: Tokens | None = None,
    check: bool = True,
    **model_kwargs: Any,
) -> tuple[Any, Attribution]:
    """Run the model and attribute a target, keeping only what the cuts need instead of a full cache.

    Args:
        model: the model
        *model_args, **model_kwargs: what the model is called with
        target, attention, baseline, ff, edits, mask, source_mask, tokens, source_tokens, check: as for `attribute`; the
            masks go to the model too, unless it is given its own

    Returns:
        The model's output and the Attribution, equal to that of a full cache.

    Raises:
        As `attribute`.

    Example:
        >>> logits, why = tl_norms.run_with_attribution(model, text, target=tl_norms.logit(" are"))  # doctest: +SKIP
    """
    output, cache = run_keeping(model, model_args, model_kwargs, mask, source_mask, edits)
    return output, attribute(
        cache,
        target,
        attention=attention,
        baseline=baseline,
        ff=ff,
        edits=edits,
        mask=mask,
        source_mask=source_mask,
        tokens=tokens,
        source_tokens=source_tokens,
        check=check,
    )


@torch.no_grad()
def top_target(cache, at: int = -1, *, mask: Tensor | None = None, source_mask: Tensor | None = None) -> Target:
    """The predicted token against the runner-up.

    Args:
        cache: an ActivationCache of one sentence (a batch of several has no common target)
        at: the position whose prediction it is; negative from the last real token

    Returns:
        logit(first) - logit(second).

    Raises:
        TargetError: the model has no logits, the position does not exist, or the rows of a batch predict differently.

    Example:
        >>> tl_norms.attribute(cache, tl_norms.top_target(cache))               # doctest: +SKIP
    """
    model_map = map_of(cache, mask, source_mask)
    pairs = set(top_two(model_map, at))
    if len(pairs) > 1:
        raise TargetError(
            "the rows of this batch predict different tokens; name the target: tl_norms.logit(...), or take one row."
        )
    (first, second) = pairs.pop()
    tokenizer = getattr(cache.model, "tokenizer", None)
    made = logit(first, at) - logit(second, at)
    if tokenizer is None:
        return made
    names = [logit(tokenizer.decode([token]), at).name for token in (first, second)]
    return made.named(" - ".join(names))


@torch.no_grad()
def last_stream(cache) -> Float[Tensor, "batch pos d_model"]:
    """What leaves the last block, which directions at `layer=None` are read off."""
    stack = map_of(cache, None, None).stack
    return stack.stream(stack.n_layers)


def _held(
    cache,
    target: Target | Sequence[Target],
    ff: Rule,
    mask: Tensor | None,
    source_mask: Tensor | None,
    attention: AttentionRule,
    edits: Edits = "refuse",
) -> tuple[ModelMap, list[Target]]:
    targets = [target] if isinstance(target, Target) or not isinstance(target, Sequence) else list(target)
    return map_of(cache, mask, source_mask, attention=attention, ff=ff, edits=edits), targets


def _filled(rows: list[Tensor | None], value: Tensor) -> Tensor | None:
    """[layer t b h k] with zeros for layers that write nothing directly; None if no layer has such heads."""
    there = [row for row in rows if row is not None]
    if not there:
        return None
    width = max(row.shape[-2] for row in there)
    filled = value.new_zeros(len(rows), *value.shape, width, there[0].shape[-1])
    for number, row in enumerate(rows):
        if row is not None:
            filled[number, ..., : row.shape[-2], :] = row
    return filled
