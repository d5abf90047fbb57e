"""The source vectors of one layer and scope, formed lazily."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DecompositionError, UnknownPositionError
from .linear.carry.pairs import Sources, fresh, versions
from .linear.measure.lengths import source_norms
from .linear.measure.measures import measure_of
from .linear.measure.projections import projected_pairs
from .linear.measure.spots import agree
from .linear.measure.values import check_sum, source_values
from .projections import as_directions


@dataclass(frozen=True, repr=False, eq=False)
class Decomposition:
    """The source vectors of one layer and scope, formed only when asked for.

    They are formed of the model's weights and the cache, not of copies. If these are written to in the meantime, every
    method raises a DecompositionError: writes are counted where torch counts them, sums are made again and compared.
    For the same reason there is no `save`: keep what its methods return.

    Attributes:
        layer, scope: where
        error: relative completeness error of this layer and scope
        sources: the vectors in factored form (see `tl_norms.linear.carry.pairs`)
        token_strings, source_strings: the tokens of every text, and the encoder's after cross-attention, or None
        model_name: what the model was loaded by
        written: how often the tensors that they are formed of had been written to when the sums were checked
    """

    layer: int
    scope: str
    error: float
    sources: Sources
    has_batch: bool
    mask: Tensor | None
    max_memory: int | None
    source_mask: Tensor | None = None
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None
    model_name: str = ""
    written: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.sources.others  # noqa: B018  (made once, while the tensors are those that were checked)
        object.__setattr__(self, "written", versions(self.sources))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "sources": self._unchanged}

    def __setstate__(self, state: dict) -> None:
        """A copy has tensors of its own, which nobody has written to."""
        self.__dict__.update(state, written=versions(state["sources"]))

    @property
    def _unchanged(self) -> Sources:
        """The sources, as they were checked or not at all: vectors are formed only when asked for."""
        if versions(self.sources) != self.written:
            raise DecompositionError(
                f"layer {self.layer}, scope {self.scope!r}: the model's weights or the cache were changed in place "
                f"after this decomposition was made, so that its vectors would be those of neither. Run the model "
                f"again and call tl_norms.decompose(cache, {self.layer}, {self.scope!r})."
            )
        made_again = fresh(self.sources)
        where = f"layer {self.layer}, scope {self.scope!r}: the "
        agree(made_again.others, self.sources.others, self._size, where + "sums")
        agree(made_again.own, self.sources.own, self._size, where + "own vectors")
        agree(made_again.rest, self.sources.rest, self._size, where + "remainders")
        return made_again

    @property
    def _size(self) -> Tensor:
        """What rounding of the sums is relative to, [b q 1]."""
        parts = (self.sources.others, self.sources.own)
        return torch.stack([part.norm(dim=-1, keepdim=True) for part in parts]).sum(0)

    @property
    def boundary(self) -> int | None:
        """In a decoder, after cross-attention: the number of its own positions, which come first among the keys."""
        return None if self.sources.cross is None or self.sources.past else self.sources.own.shape[1]

    def vectors(
        self, query: int | slice | None = None, key: int | slice | None = None
    ) -> Float[Tensor, "*batch query key d_model"]:
        """v_ij for the queries and keys asked for (an int keeps its axis, of length one)."""
        sources = self._unchanged
        queries, keys = _as_slice(query, sources.own.shape[1]), _as_slice(key, sources.n_keys)
        rows = [sources.vectors(b, queries, keys) for b in range(len(sources.own))]
        vectors = _emptied(torch.stack(rows), self.mask, queries, 1)
        return self._out(_emptied(vectors, self._key_mask, keys, 2))

    @property
    def _key_mask(self) -> Tensor | None:
        """Which keys are real, those of the encoder included."""
        if self.sources.cross is None or (self.mask is None and self.source_mask is None):
            return self.mask
        sizes = self.sources.own.shape[1], self.sources.cross.n_keys
        parts = [
            torch.ones(len(self.sources.own), size, dtype=torch.bool) if mask is None else mask.cpu()
            for mask, size in zip((self.mask, self.source_mask), sizes, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def project(self, directions: Float[Tensor, "*direction d_model"]) -> Float[Tensor, "..."]:
        """<v_ij, u> for every direction u: what source j has put into position i along it, signed.

        A probe, rows of an unembedding, encoder or decoder rows of a sparse autoencoder. Up to the attention block no
        vector v_ij is formed: O(n^2 H) per direction.

        Args:
            directions: [d_model] or [direction d_model]; for one direction the last axis is gone

        Returns:
            [*batch query key direction], in the units of the stream times those of the direction. Over keys they add up
            to that of the total, less that of the remainder, which is compared.

        Raises:
            UnknownOptionError: the directions have another width.
            DecompositionError: they do not add up, or weights or cache were changed since.

        Example:
            >>> tl_norms.decompose(cache, 3, "attn_res").project(probe)         # doctest: +SKIP
        """
        sources = self._unchanged
        rows = as_directions(directions, sources.own)
        projected = projected_pairs(sources, rows, self.max_memory)
        projected = _emptied(_emptied(projected, self.mask, slice(None), 1), self._key_mask, slice(None), 2)
        out = self._out(projected)
        return out[..., 0] if directions.ndim == 1 else out

    @property
    def remainder(self) -> Float[Tensor, "*batch query d_model"]:
        """What belongs to no source: biases and betas, and their share of each later step."""
        return self._out(_emptied(self._unchanged.rest, self.mask, slice(None), 1))

    def total(self) -> Float[Tensor, "*batch query d_model"]:
        """sum_j v_ij + r_i, which is the model's own activation."""
        return self._out(_emptied(self._unchanged.total, self.mask, slice(None), 1))

    def norms(self) -> Float[Tensor, "*batch query key"]:
        """|v_ij| for all pairs, without forming them where a factor can tell."""
        return self._out(source_norms(self._unchanged, max_memory=self.max_memory))

    def measure(self, measure: Any) -> Tensor:
        """A measure of all source vectors: see `measure` of `AnalysisOptions`.

        Args:
            measure: "l2", "l1", "alti", "share" or `Onto(directions)`

        Returns:
            [batch query key]; with `Onto`, directions on a last axis. What is signed is compared with its sum.

        Raises:
            UnknownOptionError: there is no such measure, or directions of another width.
            MemoryBudgetError: max_memory is below one pair, where vectors must be formed.
            DecompositionError: signed numbers and the remainder's do not add up.

        Example:
            >>> decompose(cache, 3, "attn_res").measure("share")                # doctest: +SKIP
        """
        chosen, sources = measure_of(measure), self._unchanged
        values = source_values(sources, chosen, max_memory=self.max_memory)
        rest = chosen.of(sources.rest, sources.total)
        check_sum(sources, chosen, values, rest, f"layer {self.layer}, scope {self.scope!r}")
        return self._out(values)

    def remainder_measure(self, measure: Any) -> Tensor:
        """The same measure of what belongs to no source, [batch query]; 0 at padded queries."""
        chosen, sources = measure_of(measure), self._unchanged
        return self._out(_emptied(chosen.of(sources.rest, sources.total), self.mask, slice(None), 1))

    def mixing_ratio(self) -> Float[Tensor, "*batch query"]:
        """|sum_{j≠i} v_ij| / (|sum_{j≠i} v_ij| + |v_ii|)."""
        return self._out(self._unchanged.mixing_ratio())

    def __repr__(self) -> str:
        shape = list(self._out(self.sources.rest).shape)
        return f"Decomposition(layer={self.layer}, scope={self.scope!r}, total {shape}, error {self.error:.1e})"

    def _out(self, value: Tensor) -> Tensor:
        return value if self.has_batch else value[0]


def _emptied(value: Tensor, mask: Tensor | None, positions: slice, axis: int) -> Tensor:
    """Zero at padded positions along one axis; axis 0 is the batch."""
    if mask is None:
        return value
    keep = mask.to(value.device)[:, positions]
    shape = [len(keep), *[1] * (value.ndim - 1)]
    shape[axis] = keep.shape[1]
    return value.masked_fill(~keep.reshape(shape), 0)


def _as_slice(index: int | slice | None, n: int) -> slice:
    if index is None:
        return slice(0, n)
    if isinstance(index, slice):
        first, last, stride = index.indices(n)
        if stride != 1:
            raise UnknownPositionError(f"a slice of positions takes no stride, got {index}.")
        return slice(first, last)
    try:
        if isinstance(index, bool):
            raise TypeError
        position = range(n)[operator.index(index)]
    except (TypeError, IndexError):
        raise UnknownPositionError(
            f"there is no position {index!r}: expected an int from {-n} to {n - 1}, a slice of them, or None for all."
        ) from None
    return slice(position, position + 1)
