"""Every input token through every layer: its vectors after each block, measured.

    X^l[i, t] = (M^{l<-0} applied to x^0_t alone)_i,    sum_t X^l[i, t] + r^l_i = x^l_i    after every layer

with the patterns (or the integrals of their softmaxes), norm scales and feed-forward coefficients of the run held
fixed. The other direction is `attribute`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnknownLayerError
from .held_run import map_of, run_keeping, strings_of_map
from .labels import Tokens, model_name
from .linear.edits import Edits
from .linear.hold import Rule
from .linear.measure.measures import measure_of
from .model_map import AttentionRule
from .options import Layers, Options, layer_numbers
from .propagation_result import MeasureLike, TokenNorms
from .propagation_sums import Measuring
from .walk import Walk


@torch.no_grad()
def propagate(
    cache,
    *,
    layers: Layers = None,
    measure: MeasureLike = "l2",
    attention: AttentionRule = "held",
    ff: Rule = "ig",
    edits: Edits = "refuse",
    max_memory: int | None = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    start: int = 0,
    check: bool = True,
    progress: bool | None = None,
    tokens: Tokens | None = None,
    source_tokens: Tokens | None = None,
) -> TokenNorms:
    """What every input token has become after each layer, exactly.

    X^l[i, t] = (M^{l<-0} x^0_t)_i: the vector of input token t alone, sent through all blocks up to layer l with
    attention patterns, norm scales, feed-forward coefficients, gates and routers held as they were in the run. At every
    layer sum_t X^l[i, t] + r^l_i is the model's own stream, which is compared; r is what all biases, b_V included,
    become. This is the product of the blocks' maps of *vectors*; a rollout multiplies lengths and adds nothing up.
    With `attention="integrated"` the integrals of every softmax are held in place of its pattern, and a token is also
    sent through the queries and keys that it is part of: what it moved by deciding where others looked.

    Lengths over many layers are a picture: tokens that cancel each other are long and do nothing. For a number that
    explains an output take `measure="share"`, `Onto(direction)`, `logits`, or `attribute`.

    Args:
        cache: an ActivationCache with `required_hooks(model, target=...)`, whatever the target
        layers: which to measure, None for all; the layers before them are walked through too
        measure: of the vectors: "l2" length; "l1"; "alti" max(0, |y|_1 - |y - v|_1); "share" <v, y> / |y|^2, signed,
            1 with the remainder's; `Onto(directions)` <v, u>, signed, with a trailing axis. y is the stream there
        attention, ff, edits: what is held of softmaxes, how feed-forwards share what they write, and what to do where a
            hook changed the run, each as for `attribute`
        max_memory: bytes of the vectors that are formed at a time, beside the held map (about as large as the cache)
            and the result; None for what is fastest. Results do not depend on it
        mask: attention mask, [batch pos], needed if the batch is padded
        source_mask: the encoder's, of an encoder-decoder
        start: the cut whose positions are the sources: 0 for the input tokens, l for what enters layer l (values
            shared from before it belong to the remainder; the encoder's sources still start at its input)
        check: raise if a layer does not add up; False keeps the error in the result only
        progress: show a progress bar; None: in a terminal or notebook, if it takes more than a few seconds
        tokens: what to call the positions in tables and pictures: a list of strings, or one per text; by default the
            tokenizer's strings, if the cache holds the token ids
        source_tokens: the same for the encoder, of an encoder-decoder

    Returns:
        TokenNorms: `norms` [layer *batch query key], `remainder_norms` [layer *batch query], `error` [layer], and
        `vectors(layer, query, key)`, `logits(token, at)`. Keys are input tokens; of an encoder-decoder the target's,
        then the source's.

    Raises:
        DecompositionError: the vectors miss the model's own stream by more than rounding; nan included.
        MemoryBudgetError: one source token alone does not fit.
        UnknownLayerError, UnknownOptionError: a layer, start, measure or rule that does not exist, or tokens that
            do not fit.
        UnsupportedArchitectureError: the model is not understood as a whole, or (integrated) a pattern of it cannot be
            rebuilt from queries and keys.
        MissingActivationError, MaskError, NonFiniteError, NotACacheError

    Example:
        >>> found = tl_norms.propagate(cache)                                   # doctest: +SKIP
        >>> found.norms[-1, 0, -1]              # what reached the last position # doctest: +SKIP
    """
    measured = measure_of(measure)
    checked = Options.of(max_memory=max_memory, check=check, layers=layers)
    model_map = map_of(cache, mask, source_mask, attention=attention, ff=ff, edits=edits)
    first, numbers = _start_and_layers(start, checked.layers, model_map.stack.n_layers)
    strings, source_strings = strings_of_map(cache, model_map, tokens, source_tokens)
    walk = Walk(model_map, first, max(numbers))
    found = Measuring(walk, numbers, measured, checked.max_memory, progress).done()
    error = found.error
    if check:
        found.raise_if_off()
    has_batch = model_map.activations.has_batch

    def shaped(value: Tensor) -> Tensor:
        return value if has_batch else value[:, 0]

    return TokenNorms(
        norms=shaped(found.norms),
        remainder_norms=shaped(found.rest),
        error=error,
        layers=numbers,
        start=first,
        measure=measure,
        model_name=model_name(cache.model),
        boundary=None if model_map.encoder is None else walk.n_own,
        token_strings=strings,
        source_strings=source_strings,
        unattended={
            layer.layer: layer.written for layer in walk.layers if layer.attention is None and layer.crossing is None
        },
        has_batch=has_batch,
        max_memory=checked.max_memory,
        attention=attention,
        edits=model_map.edits,
        tolerance=model_map.stack.tolerance if check else float("inf"),
        _model_map=model_map,
    )


def _start_and_layers(start: int, layers: tuple[int, ...] | None, n_layers: int) -> tuple[int, tuple[int, ...]]:
    (first,) = layer_numbers(start) or (0,)
    if not -n_layers <= first < n_layers:
        raise UnknownLayerError(f"start is {start}: this model has layers 0 to {n_layers - 1}.")
    first %= n_layers
    if layers is None:
        return first, tuple(range(first, n_layers))
    wrong = next((one for one in layers if not -n_layers <= one < n_layers), None)
    if wrong is not None:
        raise UnknownLayerError(f"there is no layer {wrong}: this model has layers 0 to {n_layers - 1}.")
    numbers = tuple(one % n_layers for one in layers)
    early = next((one for one in numbers if one < first), None)
    if early is not None:
        raise UnknownLayerError(f"layer {early} is before start={first}: nothing has been sent through it.")
    if len(set(numbers)) < len(numbers):
        raise UnknownLayerError(f"layers names a layer more than once: {list(layers)}.")
    return first, numbers


def run_with_propagation(
    model: nn.Module,
    *model_args: Any,
    layers: Layers = None,
    measure: MeasureLike = "l2",
    attention: AttentionRule = "held",
    ff: Rule = "ig",
    edits: Edits = "refuse",
    max_memory: int | None = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    start: int = 0,
    check: bool = True,
    progress: bool | None = None,
    tokens: Tokens | None = None,
    source_tokens: Tokens | None = None,
    **model_kwargs: Any,
) -> tuple[Any, TokenNorms]:
    """Run the model and propagate its input tokens, keeping only what that needs instead of a full cache.

    Args:
        model: the model
        *model_args, **model_kwargs: what the model is called with
        layers, measure, attention, ff, edits, max_memory, mask, source_mask, start, check, progress, tokens,
            source_tokens: as for `propagate`; the masks go to the model too, unless it is given its own

    Returns:
        The model's output and the TokenNorms, equal to those of a full cache.

    Raises:
        As `propagate`.

    Example:
        >>> logits, found = tl_norms.run_with_propagation(model, text)          # doctest: +SKIP
    """
    output, cache = run_keeping(model, model_args, model_kwargs, mask, source_mask, edits)
    found = propagate(
        cache,
        layers=layers,
        measure=measure,
        attention=attention,
        ff=ff,
        edits=edits,
        max_memory=max_memory,
        mask=mask,
        source_mask=source_mask,
        start=start,
        check=check,
        progress=progress,
        tokens=tokens,
        source_tokens=source_tokens,
    )
    return output, found
