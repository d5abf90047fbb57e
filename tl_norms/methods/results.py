"""What a method returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ..blocks.activations import Activations
from ..blocks.ends import joins
from ..errors import MissingActivationError
from ..labels import Strings, model_name, strings_of_run
from ..model_map import HeldStack
from ..plan import Plan, reader_of
from ..storage.storable import Storable


@dataclass(frozen=True, repr=False, eq=False)
class ComposedMaps(Storable):
    """Maps of single layers, and composed over layers.

    Without a batch axis in the cache there is none here.

    Attributes:
        method: the function that made them
        scope: the scope whose source vectors were measured, None for attention weights
        layers: the layer numbers along the first axis; layers without attention are left out, as if nothing moved there
        unattended: those layers, with how long what they write is relative to the stream (nan if the cache does not
            tell)
        token_strings, model_name: for tables and pictures
        maps: one layer's own, [layer *batch query key]
        rollout: composed up to and including each layer, key = input position, [layer *batch query key]
    """

    method: str
    scope: str | None
    layers: tuple[int, ...]
    maps: Float[Tensor, "layer *batch query key"]
    rollout: Float[Tensor, "layer *batch query key"]
    unattended: dict[int, float] = field(default_factory=dict)
    token_strings: tuple[tuple[str, ...], ...] | None = None
    model_name: str = ""

    def __repr__(self) -> str:
        where = "attention weights" if self.scope is None else repr(self.scope)
        return f"ComposedMaps({self.method} of {where}, maps and rollout {list(self.maps.shape)}{self._left_out})"

    @property
    def _left_out(self) -> str:
        if not self.unattended:
            return ""
        sizes = ", ".join(f"{layer} ({size:.0%} of the stream)" for layer, size in self.unattended.items())
        return f"; without attention, left out: {sizes}"


def names_of(plan: Plan, activations: Activations, shape: Sequence[int]) -> tuple[Strings | None, str]:
    """What to call the positions of maps [text query key], and the model."""
    run = activations.tensors, plan.reader.model, plan.reader.stack
    strings, _ = strings_of_run(*run, None, None, (shape[0], shape[1], 0))
    return strings, model_name(plan.reader.model)


def unattended(cache, mask: Tensor | None, stack: str | None) -> dict[int, float]:
    """Layers without attention, with how long what they write is relative to the stream, mean over positions."""
    reader = reader_of(cache.model, stack)
    numbers = [number for number, block in enumerate(reader.blocks()) if block is None]
    if not numbers:
        return {}
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader, mask, None)
    layers = HeldStack(reader, activations, joins(reader), {})
    found = {}
    for number in numbers:
        try:
            found[number] = layers.layer(number).written
        except MissingActivationError:  # a cache without streams serves patterns all the same
            found[number] = float("nan")
    return found
