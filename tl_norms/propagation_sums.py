"""Vectors of source tokens measured, chunk by chunk, and their sums compared with the model's own streams."""

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from .credit_checks import LIKELY_CAUSES, raise_if_off, relative_error
from .errors import DecompositionError
from .linear.measure.measures import Measure, measure_of
from .read_targets import Ending
from .walk import Walk

_SILENT = 3.0  # seconds that pass before a progress bar is shown


class Measuring:
    """All chunks, measured; their sums are compared with the streams.

    Attributes:
        norms, rest: what was measured of the vectors, [layer b q source], and of what belongs to no source, [layer b q]
        error: of the sums of vectors; measure_error: of sums of numbers, where they add up
        scores, offset: what every source, and none, gives to a target, [b source] and [b]; all layers up to those that
            it is read off have to be measured
    """

    def __init__(
        self,
        walk: Walk,
        layers: tuple[int, ...],
        measure: Measure,
        max_memory: int | None = None,
        progress: bool | None = False,
        ending: Ending | None = None,
    ):
        self.walk, self.layers, self.measure, self.max_memory = walk, layers, measure, max_memory
        self.progress, self.ending = progress, ending
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
        self.scores = origin.new_zeros(n_batch, walk.n_sources)
        self.offset = origin.new_zeros(n_batch) if ending is None else ending.constant[0].clone()

    def done(self) -> "Measuring":
        walk = self.walk
        entering = self._covector(walk.start)
        if entering is not None:
            self.scores[:, : walk.n_own] += (entering * walk.origin).sum(-1)
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
        covector = self._covector(self.layers[at] + 1)
        if covector is not None:
            self.scores[:, sources] += torch.einsum("sbqd,bqd->bs", vectors, covector[:, first:])

    def _covector(self, cut: int) -> Float[Tensor, "b q d"] | None:
        """The target's, of the stream at a cut."""
        if self.ending is None or cut not in self.ending.covectors:
            return None
        return self.ending.covectors[cut][0]

    def _compare(self, at: int, remainder: Float[Tensor, "b q d"]) -> None:
        total, real = self.totals[self.layers[at]], self.walk.stack.real()
        tiny = torch.finfo(total.dtype).tiny
        self.rest[at] = self.measure.of(remainder, total)
        parts = torch.stack([self.largest[at], remainder.norm(dim=-1), total.norm(dim=-1)])
        size = parts.amax(0)
        off = (self.sums[at] + remainder - total).norm(dim=-1) / size.clamp_min(tiny)
        self.error[at] = _worst(off[real])
        covector = self._covector(self.layers[at] + 1)
        if covector is not None:
            self.offset += (covector * remainder).sum((-1, -2))
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
            DecompositionError: a layer, or the target, does not add up, in vectors or in numbers; nan included.
        """
        tolerance = self.walk.stack.tolerance
        # nan anywhere in what is returned is a wrong number that sums may not show
        for name, errors in (("the vectors", self.error), (f"{type(self.measure).__name__}", self.measure_error)):
            wrong = ~(errors <= tolerance)
            if bool(wrong.any()):
                at = int(wrong.nonzero()[0])
                raise DecompositionError(
                    f"after layer {self.layers[at]}: the sum over tokens of {name} misses the model's own stream by "
                    f"{float(errors[at]):.1e} of the longest of them (tolerance {tolerance:.0e}). {LIKELY_CAUSES}"
                )
        if self.ending is not None:
            error = relative_error(self.ending.value, self.offset[None], self.scores[None])
            raise_if_off(error, tolerance, "what the tokens give", self.ending.names)
        if not bool(torch.isfinite(self.norms.sum())):
            raise DecompositionError(
                f"a number measured by {type(self.measure).__name__} is not finite, though the vectors add up: it "
                f"overflows {self.norms.dtype}. Run the model in float64."
            )


_LENGTH = measure_of("l2")


def _worst(errors: Tensor) -> Tensor:
    """The largest error; nan if there is one; 0 without positions."""
    return errors.amax() if errors.numel() else errors.new_zeros(())
