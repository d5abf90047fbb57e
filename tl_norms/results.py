"""What the functions return: frozen dataclasses of plain tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .edits import Edit
from .errors import CacheShapeError, MissingExtraError, UnknownLayerError, UnknownOptionError, UnknownScopeError
from .existing import existing_pairs
from .linear.measure.lengths import sketch_standard_error
from .linear.measure.measures import Length, Measure, Onto
from .names import WEIGHT_NAMES, resolve_scope
from .options import layer_numbers
from .ranking import Ranking
from .storage.storable import Storable

if TYPE_CHECKING:
    import pandas

    from .page.text import Tokens


@dataclass(frozen=True, eq=False)
class ScopeNorms:
    """The numbers of one scope.

    Attributes:
        map: |v_ij|, or another measure; None if only ratios were kept
        mixing_ratio: |sum_{j != i} v_ij| / (|sum_{j != i} v_ij| + |v_ii|), in 0..1
        error: relative completeness error
        shares: the three parts of `mixing_shares`, after cross-attention
        remainder: the measure of what belongs to no source; None if only ratios were kept
    """

    map: Tensor | None  # [layer *batch query key], or [layer *batch query key direction]
    mixing_ratio: Float[Tensor, "layer *batch query"]
    error: Float[Tensor, " layer"]
    shares: Float[Tensor, "3 layer *batch query"] | None = None
    remainder: Tensor | None = None  # [layer *batch query], or [layer *batch query direction]


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """What heads send, and how they attend.

    Attributes:
        value_norms: |f(x)|
        patterns: the attention patterns themselves, one [batch head query key] per layer, shared with the cache; None
            if they were not kept (`NormRecorder`)
        attention, attention_ratio: Attn-W and its mixing ratio, where the patterns were not kept
    """

    value_norms: Float[Tensor, "layer *batch head key"]
    patterns: tuple[Tensor, ...] | None
    attention: Tensor | None = None
    attention_ratio: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What a result is of.

    Attributes:
        layers: the layer numbers along the first axis
        skipped: layers without attention
        chain: all scopes this model has
        processing: weight processing seen in the tensors, () if none
        causal: no query sees a later key, in any layer
        mask: True where a position is real, [batch pos], or None
        source_mask: the same for the encoder of an encoder-decoder
        boundary: in the decoder of an encoder-decoder, the number of its own positions: after cross-attention the key
            axis has those first, then the encoder's; None elsewhere
        sketch: random directions used for the scopes with `ff`, None if they are exact
        edits: what hooks changed during the run
        measure: what was measured of source vectors; `measure.name`, and `measure.signed` where values below zero mean
            something
        token_strings: the tokens of every text, as the tokenizer decodes them or as they were given, or None
        source_strings: the same for the encoder of an encoder-decoder, after cross-attention
        model_name: the name the model was loaded by
        past: of a run that went on from a key-value cache: how many keys come before that of the first query
    """

    layers: tuple[int, ...]
    skipped: tuple[int, ...] = ()
    chain: tuple[str, ...] = ()
    processing: tuple[str, ...] = ()
    causal: bool = False
    mask: Tensor | None = None
    source_mask: Tensor | None = None
    boundary: int | None = None
    sketch: int | None = None
    edits: tuple[Edit, ...] = ()
    measure: Measure = Length()
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None
    model_name: str | None = None
    past: int = 0


@dataclass(frozen=True, repr=False, eq=False)
class BlockNorms(Storable, Mapping[str, Tensor]):
    """Norms of source vectors, one map per scope; `norms[scope]` is [layer batch query key].

    Without a batch axis in the cache there is none here. Rows sum to nothing in particular: they are lengths, in the
    units of the residual stream. `norms["attn_res", 3]` is the map of one layer. With another `measure` it is what is
    in the maps (`norms.measure`); mixing ratios stay those of lengths. With `Onto(directions)` maps have the directions
    on a last axis.

    Attributes:
        by_scope: scope -> its numbers, in the order of the chain
        heads: what heads send, and how they attend
        facts: what the result is of
    """

    by_scope: dict[str, ScopeNorms]
    heads: HeadNorms
    facts: RunFacts

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes computed, in the order of the chain."""
        return tuple(self.by_scope)

    @property
    def maps(self) -> dict[str, Tensor]:
        """scope -> |v_ij|, [layer batch query key], of the maps that were kept."""
        return {scope: one.map for scope, one in self.by_scope.items() if one.map is not None}

    @property
    def mixing_ratios(self) -> dict[str, Tensor]:
        """scope -> mixing ratio, [layer batch query]."""
        return {scope: one.mixing_ratio for scope, one in self.by_scope.items()}

    def remainder(self, scope: str) -> Float[Tensor, "layer *batch query"]:
        """The measure of what belongs to no source (biases and their share of later steps); 0 at padded queries.

        Signed measures of all sources and of the remainder add up: shares to 1.

        Args:
            scope: a scope that was computed, or a paper's name for it

        Returns:
            [layer batch query]; with `Onto`, directions on a last axis.

        Raises:
            UnknownScopeError: the scope was not computed, or only its ratios were kept.

        Example:
            >>> norms = tl_norms.block_norms(cache, "attn_res", measure="share")   # doctest: +SKIP
            >>> norms["attn_res"].sum(-1) + norms.remainder("attn_res")         # doctest: +SKIP
        """
        name = self._computed(scope)
        kept = self.by_scope[name].remainder
        if kept is None:
            raise UnknownScopeError(f"the remainder of {name!r} was not kept; record it with keep='maps'.")
        return kept

    @property
    def error(self) -> dict[str, Tensor]:
        """scope -> relative completeness error, [layer]."""
        return {scope: one.error for scope, one in self.by_scope.items()}

    @property
    def shares(self) -> dict[str, Tensor]:
        """scope -> the three parts of `mixing_shares`, [part layer batch query]."""
        return {scope: one.shares for scope, one in self.by_scope.items() if one.shares is not None}

    @property
    def value_norms(self) -> Float[Tensor, "layer *batch head key"]:
        """‖f(x)‖, the norm of what each head would send from each key."""
        return self.heads.value_norms

    @property
    def patterns(self) -> tuple[Tensor, ...] | None:
        """The attention patterns, one [batch head query key] per layer; None if they were not kept."""
        return self.heads.patterns

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer numbers along the first axis."""
        return self.facts.layers

    @property
    def skipped(self) -> tuple[int, ...]:
        """Layers without attention."""
        return self.facts.skipped

    @property
    def chain(self) -> tuple[str, ...]:
        """All scopes this model has."""
        return self.facts.chain

    @property
    def processing(self) -> tuple[str, ...]:
        """Weight processing seen in the tensors, () if none."""
        return self.facts.processing

    @property
    def causal(self) -> bool:
        """No query sees a later key, in any layer."""
        return self.facts.causal

    @property
    def mask(self) -> Tensor | None:
        """True where a position is real, [batch pos], or None."""
        return self.facts.mask

    @property
    def source_mask(self) -> Tensor | None:
        """True where a position of the encoder is real, [batch pos], or None."""
        return self.facts.source_mask

    @property
    def boundary(self) -> int | None:
        """The number of the decoder's own positions, which come first among the keys after cross-attention."""
        return self.facts.boundary

    @property
    def past(self) -> int:
        """How many keys come before that of the first query: 0, but after a key-value cache."""
        return self.facts.past

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What hooks changed during the run, as far as the analysis saw it."""
        return self.facts.edits

    @property
    def sketch(self) -> int | None:
        """Random directions used for the scopes with `ff`, None if they are exact."""
        return self.facts.sketch

    @property
    def token_strings(self) -> tuple[tuple[str, ...], ...] | None:
        """The tokens of every text, one row per text; None if neither the cache nor the user named them."""
        return self.facts.token_strings

    @property
    def source_strings(self) -> tuple[tuple[str, ...], ...] | None:
        """The encoder's tokens, after cross-attention."""
        return self.facts.source_strings

    @property
    def model_name(self) -> str | None:
        """The name the model was loaded by, or its class."""
        return self.facts.model_name

    @property
    def measure(self) -> Measure:
        """What the maps hold: lengths, or another measure; `.name`, `.signed`."""
        return self.facts.measure

    __eq__ = object.__eq__  # maps are tensors: two results are the same only if they are one

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  Mapping sets it to None
        return id(self)

    def __getitem__(self, scope: str | tuple[str, int]) -> Float[Tensor, "*layer query key"]:
        """The map of a scope, [layer batch query key], or of `scope, layer`, [batch query key]."""
        if isinstance(scope, tuple):
            name, layer = scope
            return self[name][self._row(layer)]
        if scope in WEIGHT_NAMES:
            return self.attention_residual if scope == "AttnRes-W" else self.attention
        scope = self._computed(scope)
        kept = self.by_scope[scope].map
        if kept is None:
            raise UnknownScopeError(
                f"the map of {scope!r} was not kept; record it with NormRecorder(model, keep='maps')."
            )
        return kept

    def __iter__(self):
        return iter(self.scopes)

    def __len__(self) -> int:
        return len(self.scopes)

    def __contains__(self, scope: object) -> bool:
        if scope in WEIGHT_NAMES:
            return True
        try:
            self._computed(str(scope[0] if isinstance(scope, tuple) else scope))
        except UnknownScopeError:
            return False
        return True

    def mixing_ratio(self, scope: str, *, fill: float = 0.0) -> Float[Tensor, "layer *batch query"]:
        """How much of position i comes from other positions: |sum_{j≠i} v_ij| / (|sum_{j≠i} v_ij| + |v_ii|).

        Args:
            scope: a scope that was computed, or a paper's name for it; "Attn-W" and "AttnRes-W" for weights alone
            fill: the value at padded queries

        Returns:
            [layer batch query], between 0 and 1.
        """
        if scope in WEIGHT_NAMES:
            return self.attention_mixing_ratio(residual=scope == "AttnRes-W", fill=fill)
        return self._filled(self.by_scope[self._computed(scope)].mixing_ratio, fill)

    def mixing_shares(self, scope: str) -> "MixingShares":
        """The mixing ratio after cross-attention, split: the own position, the target's context, the source.

            own = ‖v_ii‖ / n,   context = ‖Σ_{j≠i} v_ij‖ / n,   source = ‖Σ_s v_is‖ / n,   n the sum of the three

        j runs over the decoder's positions, s over the encoder's. (The mixing ratio itself takes the length of the sum
        of context and source, which is shorter than the sum of their lengths.)

        Args:
            scope: a scope after cross-attention

        Returns:
            MixingShares, three tensors [layer batch query] between 0 and 1 that add up to 1; 0 at padded queries.

        Raises:
            UnknownScopeError: the scope was not computed, or there is no cross-attention in it.

        Example:
            >>> norms.mixing_shares("attn_res_ln_cross_res").source.mean()      # doctest: +SKIP
        """
        resolved = self._computed(scope)
        if resolved not in self.shares:
            has = f"ask for one of {', '.join(self.shares)}" if self.shares else "no scope of this result has any"
            raise UnknownScopeError(f"scope {resolved!r} has no cross-attention in it; {has}.")
        return MixingShares(*(self._filled(part, 0.0) for part in self.shares[resolved]))

    def pairs(self, scope: str) -> Bool[Tensor, "*batch query key"]:
        """Which pairs exist in the map of a scope: neither padding nor, in causal models, key > query."""
        found = self[scope]
        n_queries, n_keys = found.shape[-3:-1] if isinstance(self.measure, Onto) else found.shape[-2:]
        masks = [m if m is None or m.ndim == 2 else m[None] for m in (self.mask, self.source_mask)]
        found = existing_pairs(
            n_queries, n_keys, causal=self.causal, mask=masks[0], source_mask=masks[1], past=self.past
        )
        has_batch = self.value_norms.ndim == 4
        return found.expand(self.value_norms.shape[1], -1, -1) if has_batch else found[0]

    @property
    def head_norms(self) -> Float[Tensor, "layer *batch head query key"]:
        """‖αf(x)‖ = α ‖f(x)‖ per head, made when asked for."""
        if self.patterns is None:
            raise UnknownScopeError(
                "head norms need the attention patterns, which this result did not keep: use a cache, or "
                "NormRecorder(model, keep=lambda norms: norms.head_norms)."
            )
        rows = [self._masked_pattern(p) * v[..., None, :] for p, v in zip(self.patterns, self.value_norms, strict=True)]
        return torch.stack([row.to(rows[0].device) for row in rows])

    @property
    def attention(self) -> Float[Tensor, "layer *batch query key"]:
        """Attn-W: the attention weights, averaged over heads."""
        if self.patterns is None:
            if self.heads.attention is None:
                raise UnknownScopeError("Attn-W was not kept; record it with NormRecorder(model, keep='maps').")
            return self.heads.attention
        rows = [self._masked_pattern(pattern).mean(-3) for pattern in self.patterns]
        return torch.stack([row.to(rows[0].device) for row in rows])

    @property
    def attention_residual(self) -> Float[Tensor, "layer *batch query key"]:
        """AttnRes-W: ½ (Attn-W + I), the usual account of the residual connection by weights alone."""
        attention = self.attention
        identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)[self.past :]
        if self.mask is not None:
            identity = identity * self.mask.to(attention.device)[..., None, :]
        return (attention + identity) / 2

    def attention_mixing_ratio(
        self, *, residual: bool = False, fill: float = 0.0
    ) -> Float[Tensor, "layer *batch query"]:
        """Mixing ratio by weights alone: 1 − α_ii of Attn-W, or half of it for AttnRes-W (`residual=True`)."""
        if self.patterns is None and self.heads.attention_ratio is not None:
            ratio = self.heads.attention_ratio
        else:
            attention = self.attention
            ratio = attention.sum(-1) - attention.diagonal(self.past, dim1=-2, dim2=-1)
        return self._filled(ratio / 2 if residual else ratio, fill)

    def standard_error(self, scope: str) -> Float[Tensor, "layer *batch query key"]:
        """Standard error of the map of a scope: zero where it is exact (no sketch, no `ff`, or the diagonal).

        One set of random directions serves all pairs of a result, so the errors of different pairs are correlated.
        """
        scope = self._computed(scope)
        if self.sketch is None or "ff" not in scope.split("_"):
            return torch.zeros_like(self[scope])
        error = self[scope] * sketch_standard_error(self.sketch)
        error.diagonal(self.past, dim1=-2, dim2=-1).zero_()
        return error

    def top(
        self,
        query: str | int | None = None,
        k: int = 5,
        *,
        scope: str | None = None,
        layer: int | None = None,
        row: int = 0,
    ) -> Ranking:
        """The k strongest sources of a position: ‖v_ij‖ of one layer and scope, largest first.

        Args:
            query: the position, as a number (negative from the last real token) or as its token, " are", which lists
                every position of that token; None for the k strongest pairs of the text
            k: sources per position
            scope, layer: the last ones of this result, if left out (norms of different layers have different units)
            row: of the batch

        Returns:
            Ranking: layer, query, query_token, source, source_token, norm (`value` for another measure, ranked by its
            size), and share: that size as a part of the sum over all sources of the position. `.to_dataframe()`.

        Raises:
            UnknownPositionError: no such token, position or row, or a token and no token strings.
            UnknownScopeError, UnknownLayerError: not in this result.
            UnknownOptionError: k is below 1, or the measure is `Onto`, which has several numbers for a pair.

        Example:
            >>> norms.top(" are", k=3)                                          # doctest: +SKIP
        """
        from .strongest import strongest

        return strongest(self, query, k, scope, layer, row)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer, text, query and scope: mixing ratio, completeness error and strongest source.

        In a decoder with cross-attention, `strongest_in` says whether that is a token of the target or the source. With
        another measure than lengths, the strongest is the largest, and its column `strongest_value`.

        Raises:
            UnknownOptionError: the measure is `Onto`, which has several numbers for a pair.
            MissingExtraError: pandas is not installed.
        """
        if isinstance(self.measure, Onto):
            raise UnknownOptionError(
                "to_dataframe names the strongest source, but with Onto there is one for every direction. Use the maps "
                "themselves, norms[scope][..., direction], or another measure."
            )
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe needs pandas: pip install 'tl_norms[plot]'") from error
        has_batch = self.value_norms.ndim == 4
        parts, value = [], "strongest_norm" if isinstance(self.measure, Length) else "strongest_value"
        for scope in self.scopes:
            lengths, ratio = self.maps[scope].float().cpu(), self.mixing_ratios[scope].float().cpu()
            if not has_batch:
                lengths, ratio = lengths[:, None], ratio[:, None]
            keep = (
                torch.ones(lengths.shape[1:3], dtype=torch.bool)
                if self.mask is None
                else self.mask.reshape(lengths.shape[1:3]).cpu()
            )
            where = keep.expand(len(self.layers), *keep.shape).nonzero()
            layer, batch, query = where.T
            strongest = lengths.argmax(-1)[layer, batch, query]
            columns = {
                "scope": scope,
                "layer": [self.layers[n] for n in layer.tolist()],
                "batch": batch.tolist(),
                "query": query.tolist(),
                "mixing_ratio": ratio[layer, batch, query].tolist(),
                "strongest_source": strongest.tolist(),
                "strongest_in": [self._sequence(key) for key in strongest.tolist()],
                value: lengths[layer, batch, query, strongest].tolist(),
                "error": self.error[scope].cpu()[layer].tolist(),
            }
            absent = (() if has_batch else ("batch",)) + (() if self.boundary is not None else ("strongest_in",))
            parts.append(pandas.DataFrame({name: rows for name, rows in columns.items() if name not in absent}))
        return pandas.concat(parts, ignore_index=True)

    def __repr__(self) -> str:
        shape = list(next(iter(self.maps.values())).shape) if self.maps else []
        lines = [f"BlockNorms, {len(self.layers)} layers, maps {shape} [layer batch query key]"]
        if self.value_norms.ndim == 3:
            lines[0] = lines[0].replace("layer batch query", "layer query")
        if isinstance(self.measure, Onto):
            lines[0] = lines[0].replace("query key]", "query key direction]")
        if not isinstance(self.measure, Length):
            signed = "signed" if self.measure.signed else "never negative"
            lines.append(f"  measure {self.measure.name!r}, {signed}; mixing ratios are those of lengths")
        wide = max(24, *map(len, self.by_scope)) if self.by_scope else 24
        for scope, one in self.by_scope.items():
            worst = float(one.error.max())
            lines.append(
                f"  {scope:{wide}} mixing ratio {self._mean_ratio(scope):6.1%}   completeness error {worst:.1e}"
            )
        if self.past:
            lines.append(f"  after a key-value cache: the first query is position {self.past}")
        if self.boundary is not None:
            lines.append(f"  keys after cross-attention: {self.boundary} target tokens, then the source's")
        if self.skipped:
            lines.append(f"  layers without attention, skipped: {', '.join(map(str, self.skipped))}")
        lines += [f"  {edit}" for edit in self.edits]
        lines.append(f"  weight processing: {', '.join(self.processing) or 'none'}")
        return "\n".join(lines)

    def show(self, tokens: "Tokens | None" = None, **options: Any) -> None:
        """Show the interactive page: below the cell of a notebook, or else in the browser.

        Args:
            tokens: the tokens of the text, or one list per text; those kept with this result, if left out
            **options: those of `tl_norms.page.page_of_norms`: keys, batch, model_name, text, layer, scope

        Example:
            >>> norms.show(model.to_str_tokens(text), layer=3)                  # doctest: +SKIP
        """
        from .page import page_of_norms, show

        show(page_of_norms(self, tokens, **options))

    def _repr_html_(self) -> str:
        """The page, where the result keeps its token strings, or a table, for a notebook."""
        from .page import notebook_view, page_of_norms

        return notebook_view(lambda: page_of_norms(self), self._table())

    def _table(self) -> str:
        rows = "".join(
            f"<tr><td><code>{scope}</code></td><td>{self._mean_ratio(scope):.1%}</td>"
            f"<td>{float(one.error.max()):.1e}</td></tr>"
            for scope, one in self.by_scope.items()
        )
        head = "<tr><th>scope</th><th>mixing ratio</th><th>completeness error</th></tr>"
        first, *_, last = repr(self).splitlines()
        return f"<p>{first}</p><table>{head}{rows}</table><p>{last.strip()}</p>"

    def _mean_ratio(self, scope: str) -> float:
        ratio = self.by_scope[scope].mixing_ratio
        return float((ratio if self.mask is None else ratio[:, self.mask.to(ratio.device)]).mean())

    def _row(self, layer: int) -> int:
        (number,) = layer_numbers(layer) or (0,)
        n_layers = len(self.layers)
        if number not in self.layers and not -n_layers <= number < 0:
            shown = ", ".join(map(str, self.layers))
            raise UnknownLayerError(f"layer {number} is not in this result; it has {shown}.")
        return self.layers.index(number) if number in self.layers else n_layers + number

    def _sequence(self, key: int) -> str:
        """Which sequence a key belongs to, in a decoder; its number counts on from the target's."""
        return "source" if self.boundary is not None and key >= self.boundary else "target"

    def _computed(self, scope: str) -> str:
        resolved = resolve_scope(scope, self.chain)
        if resolved not in self.scopes:
            raise UnknownScopeError(
                f"scope {resolved!r} was not computed; this result has {', '.join(self.scopes)}. "
                f"Ask for it: block_norms(cache, scopes=[{resolved!r}])."
            )
        return resolved

    def _masked_pattern(self, pattern: Tensor) -> Tensor:
        pattern = pattern.to(torch.float64 if pattern.dtype == torch.float64 else torch.float32)
        if self.mask is None:
            return pattern
        mask = self.mask.to(pattern.device)
        pattern = pattern.masked_fill(~mask[..., None, :, None], 0)
        return pattern.masked_fill(~mask[..., None, None, :], 0)

    def _filled(self, ratio: Tensor, fill: float) -> Tensor:
        if self.mask is None:
            return ratio
        return ratio.masked_fill(~self.mask.to(ratio.device), fill)


def check_whole(norms: Any, who: str) -> None:
    """Refuse a result whose keys begin before its queries, where both must be the positions of one text.

    Raises:
        CacheShapeError: it is of a run that went on from a key-value cache.
    """
    if getattr(norms, "past", 0):
        raise CacheShapeError(
            f"{who} needs maps of a whole text, but these are of a run that went on from a key-value cache: their "
            f"first query is position {norms.past}. Run the whole text: model.run_with_cache(tokens)."
        )


@dataclass(frozen=True, eq=False)
class MixingShares(Storable):
    """Where a decoder's vectors come from, as shares of three lengths that add up to 1.

    Attributes:
        own: the position itself, [layer batch query]
        context: the other positions of the target
        source: the positions of the encoder
    """

    own: Float[Tensor, "layer *batch query"]
    context: Float[Tensor, "layer *batch query"]
    source: Float[Tensor, "layer *batch query"]
