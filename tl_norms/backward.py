"""One backward pass of covectors through the held map of a run: every cut, head, feed-forward, and the checks.

At each cut the number that is explained is the sum of <g_j, x_j> over positions, plus what crosses the cut beside the
stream (an encoder's output, values shared between layers), plus the offsets of all later steps, which are added up on
their own: so the error of a cut is a comparison, not a definition.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .credit_checks import Expected, check_credit, cut_errors
from .linear.carry.direction import WrittenBy, back_through
from .linear.layers import HeldAttention
from .linear.operators import inner
from .model_map import HeldStack, ModelMap
from .read_targets import Ending


@dataclass(frozen=True)
class KeptAttention:
    """What edges of one attention are made of: covectors of what it writes, values and pattern."""

    attended: Float[Tensor, "t b q d"]
    attention: HeldAttention


@dataclass(frozen=True)
class KeptEdges:
    """The edges of one attention, formed: what a file holds in place of what they are made of."""

    edges: Float[Tensor, "t b h q k"]
    logits: Float[Tensor, "t b h q k"] | None = None  # with the softmax integrated, and what sinks give
    sinks: Float[Tensor, "t b h q"] | None = None


@dataclass(frozen=True)
class StackCredit:
    """All cuts of one stack.

    Attributes:
        stream: <g_j, x_j>, [cut t b q]
        beside: what crosses from an encoder, [cut t b k]; None without one
        offset, error: [cut t b] and [cut t]
        ways: through queries, keys and values, [3 layer t b q]; None where patterns are held
        bypass, ffn: [layer t b q]; heads: [layer t b h]; values_offset: offsets after the values, [layer t b]
        kept, crossed: of every layer's self- and cross-attention
        unattended: layers without attention, with how long what they write is
    """

    stream: Tensor
    beside: Tensor | None
    offset: Tensor
    error: Tensor
    bypass: Tensor
    ffn: Tensor
    heads: Tensor
    values_offset: Tensor
    kept: tuple[KeptAttention | KeptEdges | None, ...]
    crossing_heads: Tensor | None
    crossed: tuple[KeptAttention | KeptEdges | None, ...]
    unattended: dict[int, float]
    ways: Tensor | None = None
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Credit:
    """Both stacks of a run, and the number itself."""

    value: Float[Tensor, "t b"]
    stack: StackCredit
    encoder: StackCredit | None


def carry_back(
    model_map: ModelMap,
    ending: Ending,
    check: bool = True,
    references: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Credit:
    """All targets back through the whole model.

    Args:
        references: what the first cut of the stack, and of its encoder, is measured against, [1 q d]

    Raises:
        DecompositionError: a cut does not add up to the value; nan included.
    """
    stack = model_map.stack
    walk = _Walk(stack, ending, check, reference=references[0])
    found = walk.cuts()
    if model_map.encoder is None or model_map.to_memory is None:
        return Credit(ending.value, found, None)
    g = walk.memory
    g = torch.zeros_like(ending.at(stack.n_layers)) if g is None else g
    encoder, way = model_map.encoder, model_map.to_memory
    own = way.offset
    constant = found.offset[0] + found.stream[0].sum(-1)  # tokens less their reference, and the reference
    constant = constant if own is None else constant + inner(g, own, g.ndim - 2)
    inside = Ending(ending.value, {encoder.n_layers: way.transpose(g)}, constant, {}, ending.names)
    return Credit(ending.value, found, _Walk(encoder, inside, check, "encoder ", references[1]).cuts())


class _Walk:
    """One stack, from its last cut to its first."""

    def __init__(self, stack: HeldStack, ending: Ending, check: bool, name: str = "", reference: Tensor | None = None):
        self.stack, self.ending, self.check, self.name = stack, ending, check, name
        self.reference = reference
        self.memory: Tensor | None = None  # the covector of the encoder's output
        self.shared: dict[int, Tensor] = {}  # covectors of earlier streams, whose values later layers share
        self.cut_rows = _Rows()
        self.layer_rows = _Rows()
        self.unattended: dict[int, float] = {}

    def cuts(self) -> StackCredit:
        stack, ending = self.stack, self.ending
        n = stack.n_layers
        g = ending.at(n)
        offset = ending.constant
        for cut in range(n, -1, -1):
            x = stack.stream(cut)
            if cut in self.shared:
                g = g + self.shared.pop(cut)
            if cut < n and cut in ending.covectors:
                g = g + ending.covectors[cut]
            self._cut(cut, g, x, offset)
            if cut > 0:
                g, offset = self._layer(cut, g, offset)
        return self._added_up()

    def _layer(self, cut: int, g: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """One layer back: the covector of what enters it, and the offsets from there on."""
        stack, ending = self.stack, self.ending
        layer = stack.layer(cut - 1)
        before = stack.stream(cut - 1)
        credit = back_through(layer, g, before)
        offset = offset + credit.offset
        for number, source in enumerate(layer.elsewhere, start=1):
            carried = credit.elsewhere.get(-number)
            if carried is not None:
                self._pass_on(source, carried)
        own = layer.attention is not None and layer.attention.reads < 0
        # values that are read from elsewhere cross this cut there: the offset after them leaves them out
        after = offset + self._shared(cut, leave_out=credit.elsewhere.get(-1) if own else None, layer=layer)
        zero = g.new_zeros(g.shape[:-1])
        wrote = [reading.by_position() for group in credit.feed_forwards for reading in group.wrote]
        written, written_size = _written(credit.feed_forwards, zero)
        self.layer_rows.add(
            values_offset=after + ending.read_below(cut),
            bypass=credit.bypass.by_position(),
            ffn=sum(wrote, zero),
            written=written,
            written_size=written_size,
            entering=(credit.entering * before).sum((-1, -2)),
            elsewhere=own,
            heads=None if credit.heads is None else credit.heads.by_head(),
            crossing_heads=None if credit.crossing_heads is None else credit.crossing_heads.by_head(),
            ways=[zero] * 3 if credit.ways is None else [way.by_position() for way in credit.ways],
            nodes=0 if layer.attention is None else layer.attention.nodes,
            kept=_kept(credit.attended, layer.attention),
            crossed=_kept(credit.crossed, layer.crossing),
        )
        if layer.attention is None:
            self.unattended[cut - 1] = layer.written
        return credit.entering, offset + credit.value_offset

    def _added_up(self) -> StackCredit:
        """All rows, first layer first, checked in the form in which they are returned."""
        cuts, layers, ending = self.cut_rows.reversed(), self.layer_rows.reversed(), self.ending
        integrated = self.stack.logits is not None
        crossing = any(part is not None for part in layers["crossing_heads"])
        stream, offset = torch.stack(cuts["stream"]), torch.stack(cuts["offset"])
        beside = torch.stack(cuts["beside"]) if self.stack.memory is not None else None
        typical = torch.stack(cuts["typical"])
        credit = StackCredit(
            stream,
            beside,
            offset,
            cut_errors(ending.value, stream, beside, offset, typical),
            torch.stack(layers["bypass"]),
            torch.stack(layers["ffn"]),
            _stacked(layers["heads"], ending.value),
            torch.stack(layers["values_offset"]),
            tuple(layers["kept"]),
            _stacked(layers["crossing_heads"], ending.value) if crossing else None,
            tuple(layers["crossed"]),
            dict(sorted(self.unattended.items())),
            torch.stack([torch.stack(ways) for ways in layers["ways"]], 1) if integrated else None,
            tuple(layers["nodes"]) if integrated else (),
        )
        if self.check:
            own = [not there and number not in self.unattended for number, there in enumerate(layers["elsewhere"])]
            expected = Expected(
                typical,
                torch.stack(layers["written"]),
                torch.stack(layers["written_size"]),
                torch.stack(layers["entering"]),
                own,
            )
            check_credit(credit, ending.value, expected, self.stack.tolerance, self.name, ending.names)
        return credit

    def _pass_on(self, source: int | None, carried: Tensor) -> None:
        if source is None:
            self.memory = carried if self.memory is None else self.memory + carried
        else:
            before = self.shared.get(source)
            self.shared[source] = carried if before is None else before + carried

    def _shared(self, cut: int, leave_out: Tensor | None = None, layer=None) -> Tensor:
        """What crosses a cut in values that later layers share with earlier ones."""
        total = torch.zeros_like(self.ending.value)
        for source, g in self.shared.items():
            if source < cut:
                total = total + inner(g, self.stack.stream(source), g.ndim - 2)
        if leave_out is not None and layer is not None and layer.elsewhere[0] is not None:
            total = total - inner(leave_out, self.stack.stream(layer.elsewhere[0]), leave_out.ndim - 2)
        return total

    def _cut(self, cut: int, g: Tensor, x: Tensor, offset: Tensor) -> None:
        ending = self.ending
        offset = offset + self._shared(cut) + ending.read_below(cut)
        if cut == 0 and self.reference is not None:
            offset = offset + inner(g, self.reference.expand_as(x), g.ndim - 2)
            x = x - self.reference
        beside = None
        if self.stack.memory is not None:
            memory = self.stack.memory
            beside = memory.new_zeros(*ending.value.shape, memory.shape[1])
            beside = beside if self.memory is None else (self.memory * memory).sum(-1)
        typical = (g.norm(dim=-1) * x.norm(dim=-1)).amax(-1) / x.shape[-1] ** 0.5
        self.cut_rows.add(stream=(g * x).sum(-1), offset=offset, beside=beside, typical=typical)


class _Rows:
    """What is gathered cut by cut, or layer by layer, from the last to the first."""

    def __init__(self) -> None:
        self.rows: dict[str, list] = {}

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)

    def reversed(self) -> dict[str, list]:
        return {name: row[::-1] for name, row in self.rows.items()}


def _written(groups: tuple[WrittenBy, ...], zero: Float[Tensor, "t b q"]) -> tuple[Tensor, Tensor]:
    """What feed-forwards give as their operators make it of what they read, all positions added, and its size."""
    total, size = zero.sum(-1), zero.amax(-1)
    for group in groups:
        made = group.entered.by_position()
        usual = group.entered.covector.norm(dim=-1) * group.entered.real.norm(dim=-1)
        parts = (size, made.abs().amax(-1), group.offset.abs(), usual.amax(-1) / group.entered.real.shape[-1] ** 0.5)
        total, size = total + made.sum(-1) + group.offset, torch.stack(parts).amax(0)
    return total, size


def _kept(attended: Tensor | None, attention: HeldAttention | None) -> KeptAttention | None:
    return None if attended is None or attention is None else KeptAttention(attended, attention)


def _stacked(rows: list[Tensor | None], value: Tensor) -> Tensor:
    """[layer t b h]; layers without attention, or with fewer heads, are filled with zeros."""
    width = max((row.shape[-1] for row in rows if row is not None), default=0)
    filled = value.new_zeros(len(rows), *value.shape, width)
    for number, row in enumerate(rows):
        if row is not None:
            filled[number, ..., : row.shape[-1]] = row
    return filled
