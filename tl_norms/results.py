"""What the functions return: frozen dataclasses of plain tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import MissingExtraError, UnknownScopeError
from .linear.maps import sketch_standard_error
from .names import WEIGHT_NAMES, resolve_scope
from .pairs import existing_pairs

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False, eq=False)
class BlockNorms(Mapping[str, Tensor]):
    """Lengths of source vectors, one map per scope; `norms[scope]` is [layer batch query key].

    Without a batch axis in the cache there is none here. Rows sum to nothing in particular: they are lengths, in the
    units of the residual stream.

    Attributes:
        scopes: the scopes computed, in the order of the chain
        layers: the layer numbers along the first axis
        maps: scope -> |v_ij|, [layer batch query key]
        mixing_ratios: scope -> |sum_{j != i} v_ij| / (|sum_{j != i} v_ij| + |v_ii|), in 0..1, [layer batch query]
        value_norms: |f(x)|, [layer batch head key]
        patterns: the attention patterns themselves, one [batch head query key] per layer, shared with the cache;
            None if they were not kept (`NormRecorder`)
        error: scope -> relative completeness error, [layer]
        processing: weight processing seen in the tensors, () if none
        skipped: layers without attention
        causal: no query sees a later key, in any layer
        mask: True where a position is real, [batch pos], or None
        chain: all scopes this model has
        sketch: random directions used for the scopes with `ff`, None if they are exact
        kept_attention, kept_attention_ratio: Attn-W and its mixing ratio, where the patterns were not kept
        boundary: in the decoder of an encoder-decoder, the number of its own positions: behind cross-attention the key
            axis has those first, then the encoder's; None elsewhere
        source_mask: True where a position of the encoder is real, [batch pos], or None
        shares: scope -> the three parts of `mixing_shares`, [part layer batch query]
    """

    scopes: tuple[str, ...]
    layers: tuple[int, ...]
    maps: dict[str, Tensor]
    mixing_ratios: dict[str, Tensor]
    value_norms: Float[Tensor, "layer *batch head key"]
    patterns: tuple[Tensor, ...] | None
    error: dict[str, Float[Tensor, " layer"]]
    processing: tuple[str, ...]
    skipped: tuple[int, ...]
    causal: bool
    mask: Tensor | None
    chain: tuple[str, ...]
    sketch: int | None = None
    kept_attention: Tensor | None = None
    kept_attention_ratio: Tensor | None = None
    boundary: int | None = None
    source_mask: Tensor | None = None
    shares: dict[str, Tensor] = field(default_factory=dict)

    __eq__ = object.__eq__  # maps are tensors: two results are the same only if they are one

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]  Mapping sets it to None
        return id(self)

    def __getitem__(self, scope: str) -> Float[Tensor, "layer *batch query key"]:
        if scope in WEIGHT_NAMES:
            return self.attention_residual if scope == "AttnRes-W" else self.attention
        scope = self._computed(scope)
        if scope not in self.maps:
            raise UnknownScopeError(
                f"the map of {scope!r} was not kept; record it with NormRecorder(model, keep='maps')."
            )
        return self.maps[scope]

    def __iter__(self):
        return iter(self.scopes)

    def __len__(self) -> int:
        return len(self.scopes)

    def __contains__(self, scope: object) -> bool:
        if scope in WEIGHT_NAMES:
            return True
        try:
            self._computed(str(scope))
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
        return self._filled(self.mixing_ratios[self._computed(scope)], fill)

    def mixing_shares(self, scope: str) -> "MixingShares":
        """The mixing ratio behind cross-attention, split: the own position, the target's context, the source.

            own = ‖v_ii‖ / n,   context = ‖Σ_{j≠i} v_ij‖ / n,   source = ‖Σ_s v_is‖ / n,   n the sum of the three

        j runs over the decoder's positions, s over the encoder's. (The mixing ratio itself takes the length of the sum
        of context and source, which is shorter than the sum of their lengths.)

        Args:
            scope: a scope behind cross-attention

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
        n_queries, n_keys = self[scope].shape[-2:]
        masks = [m if m is None or m.ndim == 2 else m[None] for m in (self.mask, self.source_mask)]
        found = existing_pairs(n_queries, n_keys, causal=self.causal, mask=masks[0], source_mask=masks[1])
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
            if self.kept_attention is None:
                raise UnknownScopeError("Attn-W was not kept; record it with NormRecorder(model, keep='maps').")
            return self.kept_attention
        rows = [self._masked_pattern(pattern).mean(-3) for pattern in self.patterns]
        return torch.stack([row.to(rows[0].device) for row in rows])

    @property
    def attention_residual(self) -> Float[Tensor, "layer *batch query key"]:
        """AttnRes-W: ½ (Attn-W + I), the usual account of the residual connection by weights alone."""
        attention = self.attention
        identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
        if self.mask is not None:
            identity = identity * self.mask.to(attention.device)[..., None, :]
        return (attention + identity) / 2

    def attention_mixing_ratio(
        self, *, residual: bool = False, fill: float = 0.0
    ) -> Float[Tensor, "layer *batch query"]:
        """Mixing ratio by weights alone: 1 − α_ii of Attn-W, or half of it for AttnRes-W (`residual=True`)."""
        if self.patterns is None and self.kept_attention_ratio is not None:
            ratio = self.kept_attention_ratio
        else:
            attention = self.attention
            ratio = attention.sum(-1) - attention.diagonal(dim1=-2, dim2=-1)
        return self._filled(ratio / 2 if residual else ratio, fill)

    def standard_error(self, scope: str) -> Float[Tensor, "layer *batch query key"]:
        """Standard error of the map of a scope: zero where it is exact (no sketch, no `ff`, or the diagonal).

        One set of random directions serves all pairs of a result, so the errors of different pairs are correlated.
        """
        scope = self._computed(scope)
        if self.sketch is None or "ff" not in scope.split("_"):
            return torch.zeros_like(self.maps[scope])
        error = self.maps[scope] * sketch_standard_error(self.sketch)
        error.diagonal(dim1=-2, dim2=-1).zero_()
        return error

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer, text, query and scope: mixing ratio, completeness error and strongest source.

        In a decoder with cross-attention, `strongest_in` says whether that is a token of the target or the source.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe needs pandas: pip install 'tl_norms[plot]'") from error
        has_batch = self.value_norms.ndim == 4
        parts = []
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
                "strongest_norm": lengths[layer, batch, query, strongest].tolist(),
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
        for scope in self.scopes:
            ratio = self.mixing_ratios[scope]
            keep = slice(None) if self.mask is None else self.mask.to(ratio.device)
            mean = float(ratio[:, keep].mean()) if self.mask is not None else float(ratio.mean())
            worst = float(self.error[scope].max()) if scope in self.error else float("nan")
            lines.append(f"  {scope:24} mixing ratio {mean:6.1%}   completeness error {worst:.1e}")
        if self.boundary is not None:
            lines.append(f"  keys behind cross-attention: {self.boundary} target tokens, then the source's")
        if self.skipped:
            lines.append(f"  layers without attention, skipped: {', '.join(map(str, self.skipped))}")
        lines.append(f"  weight processing: {', '.join(self.processing) or 'none'}")
        return "\n".join(lines)

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


@dataclass(frozen=True, eq=False)
class MixingShares:
    """Where a decoder's vectors come from, as shares of three lengths that add up to 1.

    Attributes:
        own: the position itself, [layer batch query]
        context: the other positions of the target
        source: the positions of the encoder
    """

    own: Float[Tensor, "layer *batch query"]
    context: Float[Tensor, "layer *batch query"]
    source: Float[Tensor, "layer *batch query"]
