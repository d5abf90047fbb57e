"""What became of every input token, layer by layer: lengths or another measure, and the vectors on request."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .backward import carry_back
from .edits import Edit
from .errors import DecompositionError, MissingExtraError, UnknownLayerError, UnknownOptionError, UnknownPositionError
from .linear.measure.measures import Measure, Onto, measure_of
from .model_map import AttentionRule, ModelMap
from .options import layer_numbers
from .read_targets import position, read_targets, token_id
from .storage.storable import Storable
from .storage.tree import moved
from .targets import logit
from .walk import Walk

Chosen = int | slice | Sequence[int] | None
MeasureLike = Literal["l2", "l1", "alti", "share"] | Measure


@dataclass(frozen=True, repr=False, eq=False)
class TokenNorms(Storable):
    """What every input token has become after each layer, measured. Keys are input tokens.

    Attributes:
        norms: [layer *batch query key], after each block; with `Onto` a last axis for the directions
        remainder_norms: [layer *batch query], the same measure of what belongs to no token: all biases
        error: [layer], |sum of vectors + remainder - stream| relative to the longest of them, worst position
        layers: numbers of the layers that were measured
        start: the cut whose positions are the keys; 0 for the input tokens
        measure: a name, or the measure itself
        boundary: of an encoder-decoder: how many keys are the target's tokens; the source's come after them
        unattended: layers without attention (what they write belongs to the remainder), with how long that is relative
            to the stream
        attention: whether patterns were held, or softmaxes integrated
        edits: what hooks changed during the run
        token_strings, source_strings (of the encoder), model_name: for tables and pictures
    """

    norms: Float[Tensor, "layer *batch query key"]
    remainder_norms: Float[Tensor, "layer *batch query"]
    error: Float[Tensor, " layer"]
    layers: tuple[int, ...]
    start: int
    measure: MeasureLike
    model_name: str
    boundary: int | None = None
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None
    unattended: dict[int, float] = field(default_factory=dict)
    has_batch: bool = True
    attention: AttentionRule = "held"
    edits: tuple[Edit, ...] = ()
    max_memory: int | None = None
    tolerance: float = float("inf")
    _model_map: ModelMap | None = None

    @torch.no_grad()
    def vectors(
        self, layer: int, query: Chosen = None, key: Chosen = None
    ) -> Float[Tensor, "*batch query key d_model"]:
        """The vectors themselves, walked again for the keys asked for and compared with what was measured.

        Args:
            layer: one that was measured, negative from the model's last
            query, key: an int (which keeps its axis, of length one), several, a slice, or None for all

        Returns:
            [*batch query key d_model], in the units of the stream after the layer.

        Raises:
            UnknownLayerError, UnknownPositionError: there is none, or it was not measured.
            DecompositionError: weights or activations were changed since.

        Example:
            >>> found.vectors(-1, query=-1).sum(-2)                             # doctest: +SKIP
        """
        number = self._layer(layer)
        walk = self._walked(number)
        queries, keys = _numbers(query, walk.n_own, "query"), _numbers(key, walk.n_sources, "key")
        unique = list(dict.fromkeys(keys))
        n_batch, _, d = walk.origin.shape
        out = walk.origin.new_zeros(n_batch, len(queries), len(unique), d)
        wanted = torch.tensor(queries, device=out.device)
        column = {source: at for at, source in enumerate(unique)}
        row, measure = self.layers.index(number), measure_of(self.measure)
        stored = (self.norms if self.has_batch else self.norms[:, None]).to(out.device)
        total = walk.stack.stream(number + 1)
        for chunk in walk.chunks(unique, self.max_memory):
            vectors = next(x for at, x in walk.carried(chunk) if at == number)
            sources = torch.tensor(chunk.sources, device=out.device)
            measured = measure.of(vectors, total[:, chunk.first :]).movedim(0, 2)
            before = stored[row][:, chunk.first :].index_select(2, sources)
            self._compare(measured, before, stored[row], number)
            there = (wanted >= chunk.first).nonzero()[:, 0]
            if not len(there):
                continue
            picked = vectors.index_select(2, wanted[there] - chunk.first)
            columns = torch.tensor([column[source] for source in chunk.sources], device=out.device)
            out[:, there[:, None], columns] = picked.permute(1, 2, 0, 3)
        out = out if len(unique) == len(keys) else out[:, :, [column[source] for source in keys]]
        return out if self.has_batch else out[0]

    def _compare(self, measured: Tensor, before: Tensor, whole: Tensor, layer: int) -> None:
        error = (measured - before).abs().amax() / whole.abs().amax().clamp_min(torch.finfo(whole.dtype).tiny)
        if not error <= min(self.tolerance, 1e-3):
            raise DecompositionError(
                f"layer {layer}: the vectors are no longer those that were measured (off by {float(error):.1e}): "
                f"weights or activations were changed since. Run the model and call tl_norms.propagate again."
            )

    @torch.no_grad()
    def logits(self, token: int | str, at: int = -1) -> Float[Tensor, "*batch key"]:
        """What every input token gives to a logit, through the held head; one more run through the map.

        Equal to `attribute(cache, logit(token, at)).tokens`, which is computed backwards and compared.

        Args:
            token: a vocabulary id, or a string of one token
            at: the position whose logit it is; negative from the last real token

        Returns:
            [*batch key], in logits; with the offset (biases) they add up to the logit.

        Raises:
            TargetError: there is no such output or position.
            DecompositionError: forward and backward disagree.

        Example:
            >>> tl_norms.propagate(cache).logits(" are")                        # doctest: +SKIP
        """
        walk = self._walked()
        stack = walk.stack
        token_id(walk.map, token)
        ending = read_targets(walk.map, [logit(token, at)])
        where = position(walk.map, at)
        rows = torch.arange(len(where), device=where.device)
        covector = ending.at(stack.n_layers)[0][rows, where]  # [b d]
        out = walk.origin.new_zeros(len(where), walk.n_sources)
        for chunk in walk.chunks(range(walk.n_sources), self.max_memory):
            vectors = None
            for _, vectors in walk.carried(chunk):  # noqa: B007  the last one
                pass
            reached = where >= chunk.first
            picked = vectors[:, rows, (where - chunk.first).clamp_min(0)]  # pyright: ignore[reportOptionalSubscript]
            found = torch.einsum("sbd,bd->bs", picked, covector) * reached[:, None]
            out[:, torch.tensor(chunk.sources, device=out.device)] = found
        credit = carry_back(walk.map, ending, check=self.tolerance != float("inf"))
        expected = [credit.stack.stream[walk.start, 0]]
        if credit.encoder is not None and walk.start == 0:
            expected.append(credit.encoder.stream[0, 0])
        backward = torch.cat(expected, dim=-1)
        forward = out[:, : backward.shape[-1]]
        size = torch.maximum(backward.abs().amax(), ending.value.abs().amax())
        error = (forward - backward).abs().amax() / size.clamp_min(torch.finfo(size.dtype).tiny)
        if not error <= self.tolerance:
            raise DecompositionError(
                f"{ending.names[0]}: what the tokens give, walked forward, misses what the target takes, carried "
                f"back, by {float(error):.1e} (tolerance {self.tolerance:.0e}). Likely cause: weights or activations "
                f"were changed since. Run the model and call tl_norms.propagate again."
            )
        return out if self.has_batch else out[0]

    def _layer(self, layer: int) -> int:
        (number,) = layer_numbers(layer) or (0,)
        number = number + self._map().stack.n_layers if number < 0 else number
        if number not in self.layers:
            raise UnknownLayerError(f"layer {layer} was not measured; these were: {list(self.layers)}.")
        return number

    def _walked(self, stop: int = -1) -> Walk:
        """The layers up to one, held again: what was measured is compared with what is there now."""
        return Walk(self._map(), self.start, stop % self._map().stack.n_layers)

    def _map(self) -> ModelMap:
        if self._model_map is None:
            raise UnknownOptionError(
                "these norms are without their run (a file does not hold it), so there are no vectors and no logits: "
                "call tl_norms.propagate(cache) again."
            )
        return self._model_map

    def without_vectors(self) -> "TokenNorms":
        """The same without the run, which holds on to the cache and the model."""
        return replace(self, _model_map=None)

    def for_storage(self) -> "TokenNorms":
        """A file holds the numbers; vectors and logits need the run."""
        return self.without_vectors()

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds neither the model nor the cache."""
        return {**self.__dict__, "_model_map": None}

    def to(self, device: torch.device | str) -> "TokenNorms":
        """The same result with all numbers on a device; vectors and logits stay on that of the run."""
        return replace(moved(self.without_vectors(), device), _model_map=self._model_map)

    def to_dataframe(self):
        """One row per layer, row of the batch, query and key: `layer`, `row`, `query`, `key`, `query_token`,
        `key_token`, `norm` (with `Onto` also `direction`), and a key -1, `remainder`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("tables need pandas: pip install pandas") from error
        with_rest = torch.cat(
            [self.norms, self.remainder_norms.unsqueeze(3 if self.has_batch else 2)], 3 if self.has_batch else 2
        )
        values = with_rest if self.has_batch else with_rest[:, None]
        onto = isinstance(self.measure, Onto)
        values = values if onto else values[..., None]
        n_keys = values.shape[3] - 1
        index = torch.cartesian_prod(*(torch.arange(n) for n in values.shape)).tolist()
        rows = []
        for (at, b, i, j, r), value in zip(index, values.flatten().tolist(), strict=True):
            key, name = (j, self._label(j, b)) if j < n_keys else (-1, "remainder")
            row = (self.layers[at], b, i, key, self._label(i, b), name, value)
            rows.append((*row, r) if onto else row)
        columns = ["layer", "row", "query", "key", "query_token", "key_token", "norm"]
        return pandas.DataFrame(rows, columns=[*columns, "direction"] if onto else columns)

    def _label(self, at: int, row: int) -> str:
        strings, prefix = self.token_strings, ""
        if self.boundary is not None and at >= self.boundary:
            strings, at, prefix = self.source_strings, at - self.boundary, "source "
        return f"{prefix}{at}" if strings is None else strings[row][at]

    def __repr__(self) -> str:
        name = self.measure if isinstance(self.measure, str) else type(self.measure).__name__
        cut = "" if self.start == 0 else f" from cut {self.start}"
        cut += "" if self.attention == "held" else ", softmaxes integrated"
        return (
            f"TokenNorms({name} of {self.model_name}{cut}: norms {list(self.norms.shape)}, layers "
            f"{self.layers[0]} to {self.layers[-1]}, error {float(self.error.max()):.1e})"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"


def _numbers(chosen: Chosen, n: int, name: str) -> list[int]:
    """Positions as numbers from 0."""
    if chosen is None:
        return list(range(n))
    if isinstance(chosen, slice):
        return list(range(n))[chosen]
    wanted = [chosen] if isinstance(chosen, int) else [int(one) for one in chosen]
    wrong = next((one for one in wanted if not -n <= one < n), None)
    if wrong is not None:
        raise UnknownPositionError(f"there is no {name} {wrong}: this run has 0 to {n - 1}.")
    return [one % n for one in wanted]
