"""What a method returns."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..storage.storable import Storable


@dataclass(frozen=True, repr=False, eq=False)
class ComposedMaps(Storable):
    """Maps of single layers, and composed over layers.

    Without a batch axis in the cache there is none here.

    Attributes:
        method: the function that made them
        scope: the scope whose source vectors were measured, None for attention weights
        layers: the layer numbers along the first axis; layers without attention are left out, as if nothing moved there
        maps: one layer's own, [layer *batch query key]
        rollout: composed up to and including each layer, key = input position, [layer *batch query key]
    """

    method: str
    scope: str | None
    layers: tuple[int, ...]
    maps: Float[Tensor, "layer *batch query key"]
    rollout: Float[Tensor, "layer *batch query key"]

    def __repr__(self) -> str:
        where = "attention weights" if self.scope is None else repr(self.scope)
        return f"ComposedMaps({self.method} of {where}, maps and rollout {list(self.maps.shape)})"
