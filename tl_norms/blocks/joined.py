"""Several layers of one shape read as one: which can be, and their activations joined on the batch axis."""

from collections.abc import Hashable, Sequence

import torch

from ..errors import CacheShapeError
from .activations import Activations
from .structure import Add, Attention, Block, Norm, Step


def shape_of(block: Block, scopes: tuple[str, ...]) -> Hashable | None:
    """What layers that are read as one have in common; None where a layer has to be taken by itself.

    Such layers are chains: attention without gate or norm inside, then norms, and sums with the stream, each of what
    the step before made; every activation that is compared is hooked.
    """
    needed = block.needed(scopes)
    if needed != tuple(range(1, len(needed) + 1)):
        return None
    parts = []
    for number in needed:
        step = block.steps[number - 1]
        kind = _kind(step, number)
        compared = step.scope is not None and (step.scope in scopes or isinstance(step.operation, Attention))
        truth = step.truth
        if kind is None or (compared and (truth is None or truth.through is not None or truth.sent_by is not None)):
            return None
        parts.append((kind, step.scope, compared and truth is not None and (len(truth.plus), len(truth.minus))))
    return tuple(parts)


def _kind(step: Step, number: int) -> Hashable | None:
    operation = step.operation
    if number == 1:
        plain = type(operation) is Attention and operation.gate is None and operation.inner_norm is None
        return ("attention", operation.heads_first, operation.clip) if plain else None
    if step.reads != number - 1:
        return None
    if isinstance(operation, Norm):
        return "norm"
    if isinstance(operation, Add) and operation.other == 0 and not operation.beside:
        return ("add", operation.scale, operation.other_scale)
    return None


def joined(activations: Activations, hooks: Sequence[tuple[str, ...]]) -> Activations:
    """The activations of layers with these hooks under the names of the first, one layer's texts after the other's.

    Raises:
        CacheShapeError: they are of several shapes, dtypes or devices. MissingActivationError.
    """
    tensors = {}
    if len({len(names) for names in hooks}) > 1:
        raise CacheShapeError(f"the layer of {hooks[0][0]} has more hooks than others, or less.")
    for names in zip(*hooks, strict=True):
        found = [activations.tensor(name) for name in names]
        if len({(one.shape, one.dtype, one.device) for one in found}) > 1:
            raise CacheShapeError(f"{names[0]} is not of one shape with that of other layers.")
        tensors[names[0]] = torch.cat(found) if len(found) > 1 else found[0]
    return activations.of_layers(tensors, len(hooks))
