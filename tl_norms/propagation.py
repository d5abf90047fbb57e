"""Every input token through every layer: its vectors after each block, measured.

    X^l[i, t] = (M^{l<-0} applied to x^0_t alone)_i,    sum_t X^l[i, t] + r^l_i = x^l_i    after every layer

with the patterns, norm scales and feed-forward coefficients of the run held fixed. The other direction is `attribute`.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .attribution import attribution_hooks
from .blocks.activations import Activations, check_cache
from .errors import DecompositionError, UnknownLayerError, UnknownOptionError
from .labels import model_name, strings_of_ids
from .linear.measure.measures import Measure, measure_of
from .model_map import hold_model
from .options import Layers, Options, layer_numbers
from .plan import reader_of
from .propagation_result import MeasureLike, TokenNorms
from .walk import Walk

_SILENT = 3.0  # seconds that pass before a progress bar is shown


@torch.no_grad()
def propagate(
    cache,
    *,
    layers: Layers = None,
    measure: MeasureLike = "l2",
    max_memory: int | None = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    start: int = 0,
    check: bool = True,
    progress: bool | None = None,
    **held: Any,
) -> TokenNorms:
    """What every input token has become after each layer, exactly.

    X^l[i, t] = (M^{l<-0} x^0_t)_i: the vector of input token t alone, sent through all blocks up to layer l with
    attention patterns, norm scales, feed-forward coefficients, gates and routers held as they were in the run. At every
    layer sum_t X^l[i, t] + r^l_i is the model's own stream, which is compared; r is what all biases, b_V included,
    become. This is the product of the blocks' maps of *vectors*; a rollout multiplies lengths and adds nothing up.

    Lengths over many layers are a picture: tokens that cancel each other are long and do nothing. For a number that
    explains an output take `measure="share"`, `Onto(direction)`, `logits`, or `attribute`.

    Args:
        cache: an ActivationCache with `required_hooks(model, target=...)`, whatever the target
        layers: which to measure, None for all; the layers before them are walked through too
        measure: of the vectors: "l2" length; "l1"; "alti" max(0, |y|_1 - |y - v|_1); "share" <v, y> / |y|^2, signed,
            1 with the remainder's; `Onto(directions)` <v, u>, signed, with a trailing axis. y is the stream there
        max_memory: bytes of the vectors that are formed at a time, beside the held map (about as large as the cache)
            and the result; None for what is fastest. Results do not depend on it
        mask: attention mask, [batch pos], needed if the batch is padded
        source_mask: the encoder's, of an encoder-decoder
        start: the cut whose positions are the sources: 0 for the input tokens, l for what enters layer l (values
            shared from before it belong to the remainder; the encoder's sources still start at its input)
        check: raise if a layer does not add up; False keeps the error in the result only
        progress: show a progress bar; None: in a terminal or notebook, if it takes more than a few seconds
        **held: what is held, as for `attribute`

    Returns:
        TokenNorms: `norms` [layer *batch query key], `remainder_norms` [layer *batch query], `error` [layer], and
        `vectors(layer, query, key)`, `logits(token, at)`. Keys are input tokens; of an encoder-decoder the target's,
        then the source's.

    Raises:
        DecompositionError: the vectors miss the model's own stream by more than rounding; nan included.
        MemoryBudgetError: one source token alone does not fit.
        UnknownLayerError, UnknownOptionError: a layer, start or measure that does not exist.
        MissingActivationError, UnsupportedArchitectureError, MaskError, NonFiniteError, NotACacheError

    Example:
        >>> found = tl_norms.propagate(cache)                                   # doctest: +SKIP
        >>> found.norms[-1, 0, -1]              # what reached the last position # doctest: +SKIP
    """
    check_cache(cache)
    measured = measure_of(measure)
    checked = Options.of(max_memory=max_memory, check=check, layers=layers)
    reader = reader_of(cache.model)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader, mask, source_mask)
    model_map = hold_model(cache.model, activations, reader, **_known(held))
    first, numbers = _start_and_layers(start, checked.layers, model_map.stack.n_layers)
    walk = Walk(model_map, first, max(numbers))
    found = _Measuring(walk, numbers, measured, checked.max_memory, progress).done()
    error = found.error
    if check:
        found.raise_if_off()
    has_batch = activations.has_batch

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
        token_strings=strings_of_ids(cache.cache_dict, cache.model),
        unattended={
            layer.layer: layer.written for layer in walk.layers if layer.attention is None and layer.crossing is None
        },
        has_batch=has_batch,
        max_memory=checked.max_memory,
        tolerance=model_map.stack.tolerance if check else float("inf"),
        _model_map=model_map,
    )


class _Measuring:
    """All chunks, measured; their sums are compared with the streams."""

    def __init__(
        self, walk: Walk, layers: tuple[int, ...], measure: Measure, max_memory: int | None, progress: bool | None
    ):
        self.walk, self.layers, self.measure, self.max_memory = walk, layers, measure, max_memory
        self.progress = progress
        origin = walk.origin
        n_batch, n, d = origin.shape
        self.totals = {number: walk.stack.stream(number + 1) for number in layers}
        axes = measure.of(origin[:1, :1], origin[:1, :1]).shape[2:]
        self.norms = origin.new_zeros(len(layers), n_batch, n, walk.n_sources, *axes)
        self.rest = origin.new_zeros(len(layers), n_batch, n, *axes)
        self.sums = origin.new_zeros(len(layers), n_batch, n, d)
        self.largest = origin.new_zeros(len(layers), n_batch, n)
        self.error = origin.new_zeros(len(layers))
        self.measure_error = origin.new_zeros(len(layers))

    def done(self) -> "_Measuring":
        walk = self.walk
        disable = None if self.progress is None else not self.progress
        delay = 0.0 if self.progress else _SILENT
        with tqdm(total=walk.n_sources, desc="propagate", unit="token", disable=disable, delay=delay) as bar:
            for chunk in walk.chunks(range(walk.n_sources), self.max_memory):
                sources = torch.tensor(chunk.sources, device=self.norms.device)
                for number, vectors in walk.carried(chunk):
                    if number in self.totals:
                        self._measure(self.layers.index(number), chunk.first, sources, vectors)
                bar.update(len(chunk.sources))
        for number, remainder in walk.remainders():
            if number in self.totals:
                self._compare(self.layers.index(number), remainder)
        return self

    def _measure(self, at: int, first: int, sources: Tensor, vectors: Float[Tensor, "s b q d"]) -> None:
        total = self.totals[self.layers[at]][:, first:]
        measured = self.measure.of(vectors, total)
        lengths = measured if self.measure is _LENGTH else vectors.norm(dim=-1)
        self.norms[at, :, first:].index_copy_(2, sources, measured.movedim(0, 2))
        self.sums[at, :, first:] += vectors.sum(0)
        largest = self.largest[at, :, first:]
        torch.maximum(largest, lengths.amax(0), out=largest)

    def _compare(self, at: int, remainder: Float[Tensor, "b q d"]) -> None:
        total, real = self.totals[self.layers[at]], self.walk.stack.real()
        tiny = torch.finfo(total.dtype).tiny
        self.rest[at] = self.measure.of(remainder, total)
        parts = torch.stack([self.largest[at], remainder.norm(dim=-1), total.norm(dim=-1)])
        size = parts.amax(0)
        off = (self.sums[at] + remainder - total).norm(dim=-1) / size.clamp_min(tiny)
        self.error[at] = _worst(off[real])
        covectors = self.measure.covectors(total)
        if covectors is None:
            return
        # what is linear adds up too, as it is returned: relative to the longest vector along the longest covector
        numbers = self.norms[at].sum(2) + self.rest[at]
        whole = self.measure.of(total, total)
        along = covectors.norm(dim=-1)
        along = along.expand(*total.shape[:-1], along.shape[-1]) if whole.ndim == 3 else along[..., 0]
        scale = size if whole.ndim == 2 else size[..., None]
        self.measure_error[at] = _worst(((numbers - whole).abs() / (scale * along).clamp_min(tiny))[real])

    def raise_if_off(self) -> None:
        """
        Raises:
            DecompositionError: a layer does not add up, in vectors or in what is measured; nan included.
        """
        tolerance = self.walk.stack.tolerance
        # nan anywhere in what is returned is a wrong number that sums may not show
        for name, errors in (("the vectors", self.error), (f"{type(self.measure).__name__}", self.measure_error)):
            wrong = ~(errors <= tolerance)
            if bool(wrong.any()):
                at = int(wrong.nonzero()[0])
                raise DecompositionError(
                    f"after layer {self.layers[at]}: the sum over tokens of {name} misses the model's own stream by "
                    f"{float(errors[at]):.1e} of the longest of them (tolerance {tolerance:.0e}). Likely causes: the "
                    f"model's weights or device changed after the cache was made; a hook edited an activation during "
                    f"the run; the model was in training mode (call model.eval())."
                )
        if not bool(torch.isfinite(self.norms.sum())):
            raise DecompositionError(
                f"a number measured by {type(self.measure).__name__} is not finite, though the vectors add up: it "
                f"overflows {self.norms.dtype}. Run the model in float64."
            )


_LENGTH = measure_of("l2")


def _worst(errors: Tensor) -> Tensor:
    """The largest error; nan if there is one; 0 without positions."""
    return errors.amax() if errors.numel() else errors.new_zeros(())


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


def _known(held: dict[str, Any]) -> dict[str, Any]:
    """Options of the held map that were given."""
    known = [name for name in inspect.signature(hold_model).parameters if name not in _OWN]
    given = dict(held)
    if given.get("ff") == "ig" and "ff" not in known:
        del given["ff"]
    for name in given:
        if name not in known:
            raise UnknownOptionError(
                f"unknown option {name}={given[name]!r}; expected one of {', '.join(known) or 'ff'}."
            )
    return given


_OWN = ("model", "activations", "reader", "keep")


def run_with_propagation(
    model: nn.Module,
    *model_args: Any,
    layers: Layers = None,
    measure: MeasureLike = "l2",
    max_memory: int | None = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    start: int = 0,
    check: bool = True,
    progress: bool | None = None,
    held: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> tuple[Any, TokenNorms]:
    """Run the model and propagate its input tokens, keeping only what that needs instead of a full cache.

    Args:
        model: the model
        *model_args, **model_kwargs: what the model is called with
        layers, measure, max_memory, mask, source_mask, start, check, progress: as for `propagate`; the masks are not
            passed on to the model
        held: further options of `propagate`, by their names

    Returns:
        The model's output and the TokenNorms, equal to those of a full cache.

    Raises:
        As `propagate`.

    Example:
        >>> logits, found = tl_norms.run_with_propagation(model, text)          # doctest: +SKIP
    """
    names = attribution_hooks(model)
    with torch.no_grad():
        output, cache = model.run_with_cache(*model_args, names_filter=names, **model_kwargs)  # pyright: ignore[reportCallIssue]
    found = propagate(
        cache,
        layers=layers,
        measure=measure,
        max_memory=max_memory,
        mask=mask,
        source_mask=source_mask,
        start=start,
        check=check,
        progress=progress,
        **(held or {}),
    )
    return output, found
