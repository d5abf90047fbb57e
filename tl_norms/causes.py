"""Why the parts of a scope miss the model's activation: what can be seen in the run, then what is guessed."""

from collections.abc import Iterator, Mapping

from jaxtyping import Float
from torch import Tensor

from .blocks.structure import Add, Step
from .freeze import FrozenBlock
from .tolerances import TOLERANCE


def cause(
    frozen: FrozenBlock, step: Step, number: int, made: Float[Tensor, "b q d"], found: Float[Tensor, "b q d"]
) -> str:
    """One or more sentences: the edit of a hook, one factor everywhere, memory that is shared, hooks that are missing.

    Args:
        number: of the point that is missed
        made, found: the sum of the parts, and the model's activation
    """
    edited = frozen.suspected_edit(number)
    shared = _shared(frozen, step)
    if edited is not None:
        said = [
            f"{edited}. If a hook of yours did that: edits='replace' (its numbers take the place of the sources) or "
            f"edits='add' (they come on top of them).",
            *shared,
        ]
        return " ".join(said)
    factor = _factor(frozen, made, found)
    if factor is not None:
        what = " + ".join(step.truth.plus) if step.truth is not None else "it"
        said = [f"At all positions {what} is {factor:.4g} times the sum of the parts: a hook multiplied it", *shared]
        said[0] += ", or weights were scaled after the cache was made. edits='replace' analyses it as a hook's."
        return " ".join(said)
    branch = _branch(frozen, step, made, found)
    if branch is not None:
        return f"{branch}. edits='replace' or edits='add' analyses it."
    training = bool(getattr(frozen.reader.model, "training", False))
    guesses = [
        "the model's weights or device changed after the cache was made",
        "a hook edited an activation inside the block during the run",
        "the model is in training mode (call model.eval())"
        if training
        else "the model was in training mode (call model.eval())",
    ]
    said = [
        *shared,
        *_unseen(frozen, number),
        f"Likely causes: {'; '.join(guesses)}. If none applies, the block is not understood: please report it with "
        f"tl_norms.scopes(model) and the model's name.",
    ]
    return " ".join(said)


def _factor(frozen: FrozenBlock, made: Tensor, found: Tensor) -> float | None:
    """The number that all parts were multiplied with, if one explains the difference."""
    square = float(made.double().square().sum())
    if not square or made.shape != found.shape:
        return None
    factor = float((made.double() * found.double()).sum()) / square
    off, size = float((found - factor * made).norm()), float(found.norm())
    tolerance = TOLERANCE[frozen.activations.coarsest]
    return factor if off <= tolerance * size and abs(factor - 1) > tolerance else None


def _branch(frozen: FrozenBlock, step: Step, made: Tensor, found: Tensor) -> str | None:
    """What was added more or less than once, where that explains the difference of a sum."""
    operation = step.operation
    if not isinstance(operation, Add) or made.shape != found.shape:
        return None
    for point, scale in ((step.reads, operation.scale), (operation.other, operation.other_scale)):
        truth = frozen.block.steps[point - 1].truth if point else None
        if truth is None:
            continue
        branch = scale * frozen.real(point)
        times = _factor(frozen, branch, found - made + branch)
        if times is not None:
            hooks = " + ".join(truth.plus)
            return f"{hooks} was added {times:.4g} times: a hook changed it between there and the stream"
    return None


def _shared(frozen: FrozenBlock, step: Step) -> list[str]:
    """The memory of what a block writes is often that of what the next one reads: a change in place is one of both."""
    if step.truth is None or len(step.truth.plus) != 1:
        return []
    tensors = frozen.activations.tensors
    names = (step.truth.plus[0], *frozen.reader.equivalents(step.truth.plus[0]))
    held = next((tensors[name] for name in names if name in tensors), None)
    others = [] if held is None else [name for name in _sharing(tensors, held) if _layer(name) != _layer(names[0])]
    if not others:
        return []
    return [
        f"{names[0]} and {others[0]}, of another block, are the same memory: a hook there that writes in place "
        f"(x[:] = ..., x.mul_(...)) changes both. Let it return a new tensor."
    ]


def _sharing(tensors: Mapping[str, Tensor], held: Tensor) -> Iterator[str]:
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.data_ptr() == held.data_ptr() and tensor.shape == held.shape:
            yield name


def _layer(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _unseen(frozen: FrozenBlock, number: int) -> list[str]:
    """Hooks where an edited head would show, if the cache was made without them."""
    _, attention = frozen.block.attention()
    at = frozen.block.attention()[0]
    if number != at or not attention.mixed:
        return []
    names = (attention.mixed, *frozen.reader.equivalents(attention.mixed))
    if any(name in frozen.activations.tensors for name in names):
        return []
    return [
        f"The cache has no {attention.mixed}, where a hook's change of single heads would show: cache with "
        f"names_filter=tl_norms.required_hooks(model, edits='replace') to be told."
    ]
