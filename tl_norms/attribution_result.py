"""The result of an attribution: numbers by token, cut, head, edge and feed-forward, and how they print themselves."""

import html
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .backward import Credit, KeptAttention, KeptEdges, StackCredit
from .credit_checks import raise_if_off, relative_error
from .edits import Edit
from .errors import UnknownLayerError, UnknownOptionError
from .linear.carry.direction import edge_credits, logit_credits
from .ranking import Ranking, pandas_of, ranked
from .storage.storable import Storable

if TYPE_CHECKING:
    from .page.text import Tokens

Kind = Literal["edges", "heads", "tokens", "ffn"]


@dataclass(frozen=True, repr=False, eq=False)
class Attribution(Storable):
    """What every part of a run gives to a target. For a list of targets every field has a leading target axis.

    Attributes:
        value: [*batch], the target as the model gives it
        tokens: [*batch pos], what each input token gives, through everything: `stream[0]`
        stream: [cut *batch pos], <g^l_j, x^l_j> for the stream entering each layer, and leaving the last (cut n_layers)
        offset: [cut *batch], what belongs to no position: the offsets of all later steps
        error: [cut], |value - sum of stream - offset| relative to the largest of them (or to what products of vectors
            of these lengths usually are), worst row of the batch
        heads: [layer *batch head], what each head moved, over all queries and keys
        bypass: [layer *batch pos], along the skip connection (and all beside the attention), cut at the values
        ffn: [layer *batch pos], what the feed-forward wrote at each position
        source_tokens: [*batch source_pos], of an encoder-decoder: the source's input tokens, through both stacks
        source_stream, source_offset, source_error: the encoder's cuts; with `tokens` they add up to the value
        beside: [cut *batch source_pos], what crosses the decoder's cuts in the encoder's output
        cross_heads: [layer *batch head], heads of cross-attention
        queries, keys, values: [layer *batch pos], with attention="integrated": what each position of the stream that
            enters a layer gives through each; with `bypass` they are the layer's cut. None with attention="held"
        edits: what hooks changed during the run
        nodes: of every layer's integrals over its softmax (0 without attention); empty with attention="held"
        layers: numbers of all layers; unattended: those without attention (their writing is in the offset) with how
            long what they write is relative to the stream
        token_strings, source_strings (of the encoder), target_name, model_name: for tables
    """

    value: Float[Tensor, "*batch"]
    stream: Float[Tensor, "cut *batch pos"]
    offset: Float[Tensor, "cut *batch"]
    error: Float[Tensor, " cut"]
    heads: Float[Tensor, "layer *batch head"]
    bypass: Float[Tensor, "layer *batch pos"]
    ffn: Float[Tensor, "layer *batch pos"]
    layers: tuple[int, ...]
    target_name: str | tuple[str, ...]
    model_name: str
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None
    unattended: dict[int, float] = field(default_factory=dict)
    source_stream: Tensor | None = None
    source_offset: Tensor | None = None
    source_error: Tensor | None = None
    beside: Tensor | None = None
    cross_heads: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    nodes: tuple[int, ...] = ()
    edits: tuple[Edit, ...] = ()
    has_targets: bool = False
    has_batch: bool = True
    tolerance: float = float("inf")
    _credit: Credit | None = None

    @classmethod
    def of(
        cls,
        credit: Credit,
        *,
        target_names: tuple[str, ...],
        single: bool,
        has_batch: bool,
        token_strings: tuple[tuple[str, ...], ...] | None,
        model_name: str,
        tolerance: float,
        source_strings: tuple[tuple[str, ...], ...] | None = None,
        edits: tuple[Edit, ...] = (),
    ) -> "Attribution":
        """The user's axes: [t b ..] in; the target axis first or gone, the batch axis kept or gone."""

        def shaped(value: Tensor | None, before: int = 1) -> Tensor | None:
            return None if value is None else shape_of(value, before, single, has_batch)

        def whole(value: Tensor, before: int = 1) -> Tensor:
            return shape_of(value, before, single, has_batch)

        def cut_error(value: Tensor | None) -> Tensor | None:  # [cut t]
            return None if value is None else value[:, 0] if single else value.movedim(1, 0)

        stack, encoder = credit.stack, credit.encoder
        queries, keys, values = (None, None, None) if stack.ways is None else stack.ways
        error = cut_error(stack.error)
        return cls(
            value=whole(credit.value, 0),
            stream=whole(stack.stream),
            offset=whole(stack.offset),
            error=stack.error if error is None else error,
            heads=whole(stack.heads),
            bypass=whole(stack.bypass),
            ffn=whole(stack.ffn),
            layers=tuple(range(len(stack.kept))),
            target_name=target_names[0] if single else target_names,
            model_name=model_name,
            token_strings=token_strings,
            source_strings=source_strings,
            unattended=stack.unattended,
            source_stream=None if encoder is None else shaped(encoder.stream),
            source_offset=None if encoder is None else shaped(encoder.offset - stack.stream[0].sum(-1)),
            source_error=None if encoder is None else cut_error(encoder.error),
            beside=shaped(stack.beside),
            cross_heads=shaped(stack.crossing_heads),
            queries=shaped(queries),
            keys=shaped(keys),
            values=shaped(values),
            nodes=stack.nodes,
            edits=edits,
            has_targets=not single,
            has_batch=has_batch,
            tolerance=tolerance,
            _credit=credit,
        )

    @property
    def tokens(self) -> Float[Tensor, "*batch pos"]:
        return self.stream.select(1 if self.has_targets else 0, 0)

    @property
    def source_tokens(self) -> Tensor | None:
        return None if self.source_stream is None else self.source_stream.select(1 if self.has_targets else 0, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the targets."""
        return (self.target_name,) if isinstance(self.target_name, str) else self.target_name

    def edges(self, layer: int, stack: Literal["decoder", "encoder"] | None = None) -> Tensor:
        """a^h_ij <g_i, f^h(x_j)>: what each head gives by what it moved from key to query, cut at the values.

        With `bypass[layer]` and the later offsets they add up to the value, which is checked.

        Args:
            layer: its number, negative from the end
            stack: "encoder" for the encoder's layers of an encoder-decoder

        Returns:
            [*batch head query key], in the units of the target. f contains b_V and the pre-norm's bias.

        Raises:
            UnknownLayerError: there is no such layer, or it has no attention.
            DecompositionError: they do not add up (weights or cache changed since).
        """
        return self._shaped(self._edges(layer, self._stack(stack)))

    def cross_edges(self, layer: int) -> Tensor:
        """The same for cross-attention: [*batch head query source_key].

        Raises:
            UnknownLayerError: there is no such layer, or it has no cross-attention.
        """
        found = self._stack(None)
        kept = found.crossed[self._number(layer, found)]
        if kept is None:
            raise UnknownLayerError(f"layer {layer} has no cross-attention.")
        return self._shaped(_edges_of(kept))

    def logits(self, layer: int, stack: Literal["decoder", "encoder"] | None = None) -> Tensor:
        """c_ij s_ij: what each attention logit gives by what it does to the pattern, with attention="integrated".

        With `edges(layer)`, `bypass[layer]` and the later offsets they add up to the value, which is checked. A sink's
        own logit belongs to no key and is left out.

        Args:
            layer, stack: as for `edges`

        Returns:
            [*batch head query key], in the units of the target.

        Raises:
            UnknownOptionError: the pattern was held. Otherwise as `edges`.
        """
        found = self._stack(stack)
        if found.ways is None:
            raise UnknownOptionError(
                'with attention="held" logits give nothing; attribute with attention="integrated".'
            )
        self._edges(layer, found)
        kept = found.kept[self._number(layer, found)]
        return self._shaped(_logits_of(kept)[0])

    def _edges(self, layer: int, found: StackCredit) -> Tensor:
        number = self._number(layer, found)
        kept = found.kept[number]
        if kept is None:
            raise UnknownLayerError(
                f"layer {layer} has no attention; these layers have none: {list(found.unattended)}."
            )
        edges = _edges_of(kept)
        credit = self._whole()
        # what crosses beside the stream and the edges: the encoder's output, or (in an encoder) the decoder's own input
        parts = [edges.flatten(2), found.bypass[number]]
        parts += [] if found.beside is None else [found.beside[number]]
        parts += [part.flatten(2) for part in _logits_of(kept)]
        error = relative_error(credit.value, found.values_offset[number], *parts)
        raise_if_off(error, self.tolerance, f"layer {number}, cut at the values", self.names)
        return edges

    def _stack(self, stack: str | None) -> StackCredit:
        credit = self._whole()
        if stack not in (None, "decoder", "encoder"):
            raise UnknownOptionError(f"stack is {stack!r}; expected 'decoder', 'encoder' or None.")
        if stack != "encoder":
            return credit.stack
        if credit.encoder is None:
            raise UnknownOptionError("this model has no encoder beside its decoder; leave stack out.")
        return credit.encoder

    def _whole(self) -> Credit:
        if self._credit is None:
            raise UnknownOptionError("this attribution was stored without its edges; attribute the cache again.")
        return self._credit

    def _number(self, layer: int, found: StackCredit) -> int:
        n = len(found.kept)
        if isinstance(layer, bool) or not hasattr(layer, "__index__") or not -n <= layer < n:
            raise UnknownLayerError(f"there is no layer {layer!r}: this model has layers 0 to {n - 1}.")
        return layer % n

    def _shaped(self, value: Tensor) -> Tensor:
        return shape_of(value, 0, not self.has_targets, self.has_batch)

    def without_edges(self) -> "Attribution":
        """The same without what edges are made of, which is as large as the streams of a cache."""
        return replace(self, _credit=None)

    def for_storage(self) -> "Attribution":
        """The same with its edges formed, [target batch head query key] per layer: a file holds no weights."""

        def formed(found: StackCredit) -> StackCredit:
            kept, crossed = (
                tuple(None if one is None else KeptEdges(_edges_of(one), *_logits_of(one)) for one in row)
                for row in (found.kept, found.crossed)
            )
            return replace(found, kept=kept, crossed=crossed)

        if self._credit is None:
            return self
        encoder = None if self._credit.encoder is None else formed(self._credit.encoder)
        return replace(self, _credit=replace(self._credit, stack=formed(self._credit.stack), encoder=encoder))

    def top(self, k: int = 10, kind: Kind = "edges", *, row: int = 0, target: int = 0) -> Ranking:
        """The k strongest parts of one kind, by absolute value.

        Args:
            kind: "edges" (head, query, key), "heads", "tokens" or "ffn" (layer, position)
            row, target: of the batch and of several targets

        Returns:
            Ranking: rows of labels (`L0H3`, token strings) and a number; `.to_dataframe()`, prints as a table.

        Raises:
            UnknownOptionError: another kind.
        """
        credit = self._whole()
        if kind == "tokens":
            return ranked(("token",), credit.stack.stream[0, target, row], k, lambda i: (self._label(i[0], row),))
        if kind == "heads":
            return ranked(("head",), credit.stack.heads[:, target, row], k, lambda i: (f"L{i[0]}H{i[1]}",))
        if kind == "ffn":
            found = credit.stack.ffn[:, target, row]
            return ranked(("layer", "token"), found, k, lambda i: (f"L{i[0]}", self._label(i[1], row)))
        if kind != "edges":
            raise UnknownOptionError(f"kind is {kind!r}; expected 'edges', 'heads', 'tokens' or 'ffn'.")
        columns = ("head", "query", "key")
        rows: list[tuple[Any, ...]] = []
        for layer, kept in enumerate(credit.stack.kept):
            if kept is None:
                continue
            edges = self._edges(layer, credit.stack)[target, row]

            def labels(i: tuple[int, ...], layer: int = layer) -> tuple[str, ...]:
                return f"L{layer}H{i[0]}", self._label(i[1], row), self._label(i[2], row)

            rows += ranked(columns, edges, k, labels).rows
        rows.sort(key=lambda one: -abs(one[-1]))
        return Ranking((*columns, "value"), tuple(rows[:k]))

    def _label(self, position: int, row: int) -> str:
        strings = self.token_strings
        if strings is None:
            return str(position)
        found = strings[row if row < len(strings) else 0]
        return f"{found[position]}" if position < len(found) else str(position)

    def to_dataframe(self):
        """One row per target, row of the batch, cut and position: `target`, `row`, `cut`, `position`, `token`, `value`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        stream = self._whole().stack.stream
        rows = []
        for cut, t, b, j in torch.cartesian_prod(*(torch.arange(n) for n in stream.shape)).tolist():
            rows.append((self.names[t], b, cut, j, self._label(j, b), float(stream[cut, t, b, j])))
        return pandas_of().DataFrame(rows, columns=["target", "row", "cut", "position", "token", "value"])

    def __repr__(self) -> str:
        shape = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in ("tokens", "stream", "heads", "ffn"))
        value = f"{float(self.value):.5g}" if self.value.numel() == 1 else f"{list(self.value.shape)}"
        name = self.target_name if isinstance(self.target_name, str) else f"{len(self.names)} targets"
        return f"Attribution({name} = {value} of {self.model_name}: {shape}, error {float(self.error.max()):.1e})"

    def show(self, tokens: "Tokens | None" = None, **options: Any) -> None:
        """Show the interactive page: below the cell of a notebook, or else in the browser.

        Args:
            tokens: the tokens of the text, or one list per text; those kept with this attribution, if left out
            **options: those of `tl_norms.page.page_of_attribution`: batch, model_name, target, text

        Example:
            >>> attribution.show()                                              # doctest: +SKIP
        """
        from .page import page_of_attribution, show

        show(page_of_attribution(self, tokens, **options))

    def _repr_html_(self) -> str:
        """The page, or a table where no page can be made (several targets or texts, no edges), for a notebook."""
        from .page import notebook_view, page_of_attribution

        return notebook_view(lambda: page_of_attribution(self), self._table())

    def _table(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>" + (
            self.top(20, "tokens")._repr_html_() if self._credit is not None else ""
        )


@dataclass(frozen=True, repr=False, eq=False)
class DirectAttribution(Storable):
    """Direct logit attribution by source token: all parts of all layers add up to the value together.

    Attributes:
        value: [*batch]
        embed: [*batch], what enters the first block (in post-norm models: the last block)
        heads: [layer *batch head key]
        ffn: [layer *batch]
        offset: [*batch], biases, and what layers without attention write
        error: relative to the largest part
        source_heads: [layer *batch head source_key], of cross-attention
        edits: what hooks changed during the run
        token_strings, source_strings (of the encoder), target_name, model_name: for tables and pictures
    """

    value: Float[Tensor, "*batch"]
    embed: Float[Tensor, "*batch"]
    heads: Float[Tensor, "layer *batch head key"]
    ffn: Float[Tensor, "layer *batch"]
    offset: Float[Tensor, "*batch"]
    error: Tensor
    source_heads: Tensor | None
    target_name: str | tuple[str, ...]
    model_name: str
    edits: tuple[Edit, ...] = ()
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None

    def __repr__(self) -> str:
        return (
            f"DirectAttribution({self.target_name} of {self.model_name}: heads {list(self.heads.shape)}, "
            f"ffn {list(self.ffn.shape)}, error {float(self.error.max()):.1e})"
        )


def shape_of(value: Tensor, before: int, single: bool, has_batch: bool) -> Tensor:
    """[.. target batch ..] with `before` axes first, as the user has them: the target axis first or gone."""
    value = value if has_batch else value.select(before + 1, 0)
    return value.select(before, 0) if single else value.movedim(before, 0)


def _logits_of(kept: KeptAttention | KeptEdges | None) -> tuple[Tensor, ...]:
    """What logits and sinks give, where the softmax is integrated; nothing where patterns are held."""
    if isinstance(kept, KeptEdges):
        return () if kept.logits is None or kept.sinks is None else (kept.logits, kept.sinks)
    return () if kept is None or not kept.attention.integrated else logit_credits(kept.attended, kept.attention)


def _edges_of(kept: KeptAttention | KeptEdges) -> Tensor:
    return kept.edges if isinstance(kept, KeptEdges) else edge_credits(kept.attended, kept.attention)
