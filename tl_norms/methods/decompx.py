"""DecompX: every input token's vector through all layers, feed-forwards included, and what it gives to a class."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnknownOptionError
from ..held_run import map_of, strings_of_map
from ..labels import model_name
from ..linear.hold import Rule
from ..linear.measure.measures import Length, Measure, Share
from ..options import Options
from ..propagation_sums import Measuring
from ..read_targets import read_targets
from ..storage.storable import Storable
from ..targets import Target
from ..walk import Walk

Reading = Literal["norm", "along"]
FirstBias = Literal["sources", "remainder"]


@dataclass(frozen=True)
class _Along:
    """<v, y> / |y|: the part of v along its position's whole vector y; with the remainder's they add up to |y|."""

    name: ClassVar[str] = "along"
    signed: ClassVar[bool] = True

    def of(self, vectors: Float[Tensor, "*s d"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return Share().of(vectors, total) * total.norm(dim=-1)

    def covectors(self, total: Float[Tensor, "*s d"]) -> Float[Tensor, "*s 1 d"]:
        return Share().covectors(total) * total.norm(dim=-1)[..., None, None]

    def sizes(self, lengths: Float[Tensor, "*s"], total: Float[Tensor, "... d"]) -> Float[Tensor, "*s"]:
        return lengths


_READINGS: dict[str, Measure] = {"norm": Length(), "along": _Along()}


@dataclass(frozen=True, repr=False, eq=False)
class DecompX(Storable):
    """Vectors of input tokens through all layers, read as numbers.

    Attributes:
        layers: the layer numbers along the first axis, all of the model's
        maps: one layer's own: what each position of the stream that enters it has put into every position that leaves
            it, [layer *batch query key]
        rollout: from the input tokens up to and including each layer, [layer *batch query key]; of vectors, not a
            product of maps
        remainder: of the rollout, what belongs to no token, [layer *batch query]
        error: |sum of vectors + remainder - stream| relative to the longest of them, worst position, [layer]
        reading: how vectors became numbers
        scores: what each input token gives to the target, [*batch key]; None without a target
        value, offset: the target as the model gives it, and what belongs to no token, [*batch]
        unattended: layers without attention (what they write belongs to the remainder), with how long that is relative
            to the stream
        boundary: of an encoder-decoder: how many keys are the target's tokens; the source's come after them
        token_strings, source_strings (of the encoder), target_name, model_name: for tables and pictures
    """

    layers: tuple[int, ...]
    maps: Float[Tensor, "layer *batch query key"]
    rollout: Float[Tensor, "layer *batch query key"]
    remainder: Float[Tensor, "layer *batch query"]
    error: Float[Tensor, " layer"]
    reading: Reading
    model_name: str
    scores: Float[Tensor, "*batch key"] | None = None
    value: Float[Tensor, "*batch"] | None = None
    offset: Float[Tensor, "*batch"] | None = None
    target_name: str | None = None
    unattended: dict[int, float] = field(default_factory=dict)
    boundary: int | None = None
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None

    def __repr__(self) -> str:
        target = "" if self.target_name is None else f", scores of {self.target_name} {list(self.scores.shape)}"  # pyright: ignore[reportOptionalMemberAccess]
        return (
            f"DecompX({self.reading} of {self.model_name}: maps and rollout {list(self.rollout.shape)}{target}, error "
            f"{float(self.error.max()):.1e})"
        )


@torch.no_grad()
def decompx(
    cache,
    target: Target | None = None,
    *,
    reading: Reading = "norm",
    first_bias: FirstBias = "sources",
    ff: Rule = "ig",
    max_memory: int | None = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    check: bool = True,
    progress: bool | None = None,
) -> DecompX:
    """DecompX (Modarressi et al. 2023): vectors of the input tokens through every layer, feed-forwards included.

        X^l[i, t]: token t alone through layers 0 .. l;   sum_t X^l[i, t] + remainder = x^l_i, which is compared

    Patterns, norm scales and feed-forward coefficients are held; an activation passes g(u)/u of its input (`ff="ig"`
    is that, and its equivalent for gates, which the authors do not define). Biases belong to no token. The authors go
    on to deal them out to tokens by rules, which their own ablation shows to be unnecessary: no such rule is offered.
    Every sum is complete; *lengths* do not add up: tokens that cancel each other are long and do nothing.

    Args:
        cache: an ActivationCache of a whole run
        target: read at a class: `class_logit(..)`, `logit(..)`, a difference of two, a direction. The signed scores add
            up to it with `offset`
        reading: "norm": lengths of the vectors. "along": <X, x_i> / |x_i|, signed; with the remainder's they add up to
            the length of the stream
        first_bias: where the bias of the first layer's values goes: "sources", as in the authors' code, moved by the
            pattern with its source (with a norm in front, its bias too); "remainder", like all other biases: then
            this is `propagate`, and scores are those of `attribute`
        ff, max_memory, mask, source_mask, check, progress: as for `propagate`

    Returns:
        DecompX: `maps`, `rollout`, `remainder`, `error`, and with a target `scores`, `offset`, `value`.

    Raises:
        UnknownOptionError: a reading, place or rule that does not exist, or a target that is not one Target.
        As `propagate`; TargetError if there is no such target.

    Example:
        >>> tl_norms.methods.decompx(cache).rollout[-1]                         # doctest: +SKIP
    """
    measure = _READINGS.get(reading) if isinstance(reading, str) else None
    if measure is None:
        raise UnknownOptionError(f"reading is {reading!r}; expected 'norm' or 'along'.")
    if first_bias not in ("sources", "remainder"):
        raise UnknownOptionError(f"first_bias is {first_bias!r}; expected 'sources' or 'remainder'.")
    if target is not None and not isinstance(target, Target):
        raise UnknownOptionError(f"target is a {type(target).__name__}; expected one Target, such as logit(' are').")
    budget = Options.of(max_memory=max_memory, check=check).max_memory
    model_map = map_of(cache, mask, source_mask, ff=ff)
    ending = None if target is None else read_targets(model_map, [target])
    layers = tuple(range(model_map.stack.n_layers))
    walk = Walk(model_map, 0, layers[-1], first_bias == "sources")
    found = Measuring(walk, layers, measure, budget, progress, ending).done()
    own = [Measuring(Walk(model_map, number, number), (number,), measure, budget).done() for number in layers[1:]]
    for one in (found, *own) if check else ():
        one.raise_if_off()
    has_batch = model_map.activations.has_batch
    strings, source_strings = strings_of_map(cache, model_map)
    scored = {} if ending is None else {"scores": found.scores, "value": ending.value[0], "offset": found.offset}

    def shaped(value: Tensor) -> Tensor:
        return value if has_batch else value[:, 0]

    return DecompX(
        layers=layers,
        maps=shaped(torch.stack([one.norms[0] for one in (found, *own)])),
        rollout=shaped(found.norms),
        remainder=shaped(found.rest),
        error=found.error,
        reading=reading,
        model_name=model_name(cache.model),
        target_name=None if target is None else target.name,
        unattended={
            layer.layer: layer.written for layer in walk.layers if layer.attention is None and layer.crossing is None
        },
        boundary=None if model_map.encoder is None else walk.n_own,
        token_strings=strings,
        source_strings=source_strings,
        **{name: value if has_batch else value[0] for name, value in scored.items()},
    )


@torch.no_grad()
def scores_alone(cache, target: Target, *, progress: bool | None = None) -> Float[Tensor, "*batch key"]:
    """`decompx(cache, target).scores` without maps and lengths of every layer, which cost more than the scores."""
    model_map = map_of(cache)
    ending = read_targets(model_map, [target])
    layers = tuple(sorted(cut - 1 for cut in ending.covectors if cut > 0))
    walk = Walk(model_map, 0, max(layers, default=0), True)
    found = Measuring(walk, layers, _READINGS["norm"], Options.of().max_memory, progress, ending).done()
    found.raise_if_off()
    return found.scores if model_map.activations.has_batch else found.scores[0]
