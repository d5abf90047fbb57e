"""One backward pass of covectors through the held map of a run: every cut, head, feed-forward, and the checks.

At each cut the number that is explained is the sum of <g_j, x_j> over positions, plus what crosses the cut beside the
stream (an encoder's output, values shared between layers), plus the offsets of all later steps, which are added up on
their own: so the error of a cut is a comparison, not a definition.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DecompositionError
from .linear.carry.direction import back_through, inner
from .linear.layers import HeldAttention
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
    constant = constant if own is None else constant + inner(g, own, g)
    inside = Ending(ending.value, {encoder.n_layers: way.transpose(g)}, constant, {}, ending.names)
    return Credit(ending.value, found, _Walk(encoder, inside, check, "encoder ", references[1]).cuts())


class _Walk:
    """One stack, from its last cut to its first."""

    def __init__(self, stack: HeldStack, ending: Ending, check: bool, name: str = "", reference: Tensor | None = None):
        self.stack, self.ending, self.check, self.name = stack, ending, check, name
        self.reference = reference
        self.memory: Tensor | None = None  # the covector of the encoder's output
        self.shared: dict[int, Tensor] = {}  # covectors of earlier streams, whose values later layers share

    def cuts(self) -> StackCredit:
        stack, ending = self.stack, self.ending
        n = stack.n_layers
        g = ending.at(n)
        offset = ending.constant
        rows: dict[str, list] = {name: [] for name in ("stream", "beside", "offset", "error")}
        layers: dict[str, list] = {
            name: []
            for name in (
                "bypass",
                "ffn",
                "heads",
                "values_offset",
                "kept",
                "crossing_heads",
                "crossed",
                "ways",
                "nodes",
            )
        }
        unattended: dict[int, float] = {}
        for cut in range(n, -1, -1):
            x = stack.stream(cut)
            if cut in self.shared:
                g = g + self.shared.pop(cut)
            if cut < n and cut in ending.covectors:
                g = g + ending.covectors[cut]
            self._cut(rows, cut, g, x, offset)
            if cut == 0:
                break
            layer, before = stack.layer(cut - 1), stack.stream(cut - 1)
            credit = back_through(layer, g, before)
            offset = offset + credit.offset
            for number, source in enumerate(layer.elsewhere, start=1):
                carried = credit.elsewhere.get(-number)
                if carried is not None:
                    self._pass_on(source, carried)
            own = layer.attention is not None and layer.attention.reads < 0
            # values that are read from elsewhere cross this cut there: the offset after them leaves them out
            after = offset + self._shared(cut, leave_out=credit.elsewhere.get(-1) if own else None, layer=layer)
            layers["values_offset"].append(after + ending.read_below(cut))
            offset = offset + credit.value_offset
            layers["bypass"].append(credit.bypass)
            layers["ffn"].append(credit.ffn)
            layers["heads"].append(credit.heads)
            layers["ways"].append(self._ways(layer.attention, credit.ways, credit.bypass, g=credit.entering, x=before))
            layers["nodes"].append(0 if layer.attention is None else layer.attention.nodes)
            layers["crossing_heads"].append(credit.crossing_heads)
            layers["kept"].append(_kept(credit.attended, layer.attention))
            layers["crossed"].append(_kept(credit.crossed, layer.crossing))
            if layer.attention is None:
                unattended[cut - 1] = layer.written
            g = credit.entering
            del layer, credit  # before the next layer is held
        for one in (rows, layers):
            for values in one.values():
                values.reverse()
        crossing = any(part is not None for part in layers["crossing_heads"])
        return StackCredit(
            torch.stack(rows["stream"]),
            torch.stack(rows["beside"]) if stack.memory is not None else None,
            torch.stack(rows["offset"]),
            torch.stack(rows["error"]),
            torch.stack(layers["bypass"]),
            torch.stack(layers["ffn"]),
            _stacked(layers["heads"], ending.value),
            torch.stack(layers["values_offset"]),
            tuple(layers["kept"]),
            _stacked(layers["crossing_heads"], ending.value) if crossing else None,
            tuple(layers["crossed"]),
            dict(sorted(unattended.items())),
            torch.stack(layers["ways"], 1) if stack.logits is not None else None,
            tuple(layers["nodes"]) if stack.logits is not None else (),
        )

    def _ways(
        self, attention: HeldAttention | None, ways: tuple[Tensor, ...] | None, bypass: Tensor, g: Tensor, x: Tensor
    ) -> Tensor:
        """Queries, keys and values, [3 t b q]; with what passes by they are the cut, which is checked."""
        found = torch.stack([torch.zeros_like(bypass)] * 3) if ways is None else torch.stack(ways)
        if attention is None or ways is None or attention.reads < 0:
            return found
        error = relative_error((g * x).sum((-1, -2)), torch.zeros_like(self.ending.value), bypass, *found)
        if self.check:
            raise_if_off(error, self.stack.tolerance, f"{self.name}queries, keys and values", self.ending.names)
        return found

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
                total = total + inner(g, self.stack.stream(source), g)
        if leave_out is not None and layer is not None and layer.elsewhere[0] is not None:
            total = total - inner(leave_out, self.stack.stream(layer.elsewhere[0]), leave_out)
        return total

    def _cut(self, rows: dict[str, list], cut: int, g: Tensor, x: Tensor, offset: Tensor) -> None:
        ending = self.ending
        offset = offset + self._shared(cut) + ending.read_below(cut)
        if cut == 0 and self.reference is not None:
            offset = offset + inner(g, self.reference.expand_as(x), g)
            x = x - self.reference
        stream = (g * x).sum(-1)
        parts = [stream]
        if self.stack.memory is not None:
            memory = self.stack.memory
            beside = memory.new_zeros(*ending.value.shape, memory.shape[1])
            beside = beside if self.memory is None else (self.memory * memory).sum(-1)
            rows["beside"].append(beside)
            parts.append(beside)
        typical = (g.norm(dim=-1) * x.norm(dim=-1)).amax(-1) / x.shape[-1] ** 0.5
        error = relative_error(ending.value, offset, *parts, typical=typical)
        rows["stream"].append(stream)
        rows["offset"].append(offset)
        rows["error"].append(error)
        if self.check:
            raise_if_off(error, self.stack.tolerance, f"{self.name}cut {cut}", ending.names)


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


def relative_error(value: Tensor, offset: Tensor, *parts: Tensor, typical: Tensor | None = None) -> Float[Tensor, " t"]:
    """|value - (sum of parts + offset)| relative to the largest of them, at the worst row of the batch.

    `typical`, [t b], is what products of such vectors usually are: a logit near zero is rounded like any other.
    """
    total = offset + sum(part.flatten(2).sum(-1) for part in parts)
    sizes = [part.flatten(2).abs().amax(-1) for part in parts if part.shape[-1]]
    sizes += [] if typical is None else [typical]
    size = torch.stack([value.abs(), offset.abs(), *sizes]).amax(0)
    error = (total - value).abs() / size.clamp_min(torch.finfo(size.dtype).tiny)
    return torch.where((total == value), torch.zeros_like(error), error).amax(-1)


def raise_if_off(error: Tensor, tolerance: float, where: str, names: tuple[str, ...]) -> None:
    """
    Raises:
        DecompositionError: an error is above the tolerance, or not a number.
    """
    wrong = ~(error <= tolerance)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise DecompositionError(
            f"{where} of {names[at]}: the contributions miss the model's own value by {float(error[at]):.1e} of the "
            f"largest of them (tolerance {tolerance:.0e}). Likely causes: the model's weights or device changed after "
            f"the cache was made; a hook edited an activation during the run; the model was in training mode (call "
            f"model.eval())."
        )
