"""The options that every analysis takes: declared, documented and checked once."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor
from typing_extensions import TypedDict

from .errors import UnknownLayerError, UnknownOptionError, UnknownScopeError
from .labels import checked_tokens
from .linear.edits import Edits
from .linear.hold import Bias, Rule
from .linear.measure.measures import Length, Measure, MeasureName, measure_of

Scopes = str | Sequence[str] | None
Layers = int | Iterable[int] | None
Stack = str


class AnalysisOptions(TypedDict, total=False):
    """Options of `block_norms` and all that is built on it.

    Keys:
        layers: one layer, several, or None for all; negative numbers count from the end
        mask: attention mask, [batch pos], True or 1 at real tokens; needed if the batch is padded
        source_mask: in a decoder with cross-attention, the encoder's attention mask, [batch pos]
        stack: which stack of blocks: "decoder" (the default) or "encoder" of an encoder-decoder; None for the only one
        bias: how the feed-forward treats biases. "player": they move along the integration path like a source of their
            own, whose share goes to the remainder: tokens share g(u) in proportion to their part of the whole
            pre-activation. "fixed": they stay and the path starts from them: tokens share g(u) - g(bias), all that they
            changed
        ff: what a feed-forward passes on. "ig": integrated gradients at the activation, and at a gate's product.
            "half": of a gated act(G) U, one half goes to either branch in proportion. "gate": act(G) is held, all goes
            to the branch U. "drop": nothing passes, and all that it writes belongs to the remainder. Without a gate the
            first three are one
        measure: what is measured of a vector v of position i with whole vector y. "l2" (default): its length, |v|.
            "l1": the sum of its absolute coordinates. "alti": max(0, |y|_1 - |y - v|_1). "share": <v, y> / |y|^2;
            signed, adds up to 1 with the remainder's. `Onto(directions)`: <v, u> for every direction u, signed, on a
            trailing axis. Mixing ratios stay those of lengths
        max_memory: bytes that scopes with `ff` may use beyond their result; None for half of what is free
        sketch: estimate maps of scopes with `ff` from this many random directions instead of all of d_model, unbiased,
            with `norms.standard_error(scope)`; about sqrt(1 / 2k) of each entry (9 % at 64). For long sequences where
            exact maps cost too much; not for comparing single entries
        check: raise if a scope is not complete; False keeps the error in the result only
        edits: what to do where a hook changed an activation during the run (ablation, patching, steering): mixed values
            (`hook_z`), what attention or the feed-forward writes, the stream. "refuse": a DecompositionError that names
            the edit. "replace": per position and head (or per position), a multiple of what was there scales the
            sources, anything else takes their place and belongs to the remainder. "add": the sources stay, the
            difference belongs to the remainder. Edits are listed in `result.edits`
        tokens: what to call the positions in tables and pictures: a list of strings, or one per text; by default the
            tokenizer's strings, where the cache holds the token ids (a TransformerBridge's full cache does)
    """

    layers: Layers
    mask: Tensor | None
    source_mask: Tensor | None
    stack: Stack | None
    bias: Bias
    ff: Rule
    measure: MeasureName | Measure
    max_memory: int | None
    sketch: int | None
    check: bool
    edits: Edits
    tokens: Sequence[str] | Sequence[Sequence[str]] | None


@dataclass(frozen=True)
class Options:
    """Checked options; see `AnalysisOptions`."""

    layers: tuple[int, ...] | None = None
    mask: Tensor | None = None
    source_mask: Tensor | None = None
    stack: Stack | None = None
    bias: Bias = "player"
    ff: Rule = "ig"
    measure: Measure = Length()
    max_memory: int | None = None
    sketch: int | None = None
    check: bool = True
    edits: Edits = "refuse"
    tokens: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """Options from keyword arguments.

        Raises:
            UnknownOptionError, UnknownLayerError: a name or a value that means nothing, with what was expected.
        """
        known = AnalysisOptions.__annotations__
        for name in given:
            if name not in known:
                raise UnknownOptionError(f"unknown option {name!r}; expected one of {', '.join(known)}.")
        one_of("bias", given.get("bias", "player"), get_args(Bias))
        one_of("ff", given.get("ff", "ig"), get_args(Rule))
        if not isinstance(given.get("stack"), str | None):
            raise UnknownOptionError(f"stack is {given['stack']!r}; expected 'decoder', 'encoder' or None.")
        one_of("edits", given.get("edits", "refuse"), get_args(Edits))
        one_of("check", given.get("check", True), (True, False))
        checked = dict(given)
        checked["layers"] = layer_numbers(given.get("layers"))
        checked["max_memory"] = _count("max_memory", given.get("max_memory"), "bytes")
        checked["sketch"] = _count("sketch", given.get("sketch"), "directions")
        checked["tokens"] = checked_tokens(given.get("tokens"))
        checked["measure"] = measure_of(given.get("measure", "l2"))
        if checked["sketch"] is not None and not isinstance(checked["measure"], Length):
            raise UnknownOptionError("sketch= estimates lengths; other measures are exact. Leave one of the two out.")
        return cls(**checked)


def layer_numbers(layers: Any) -> tuple[int, ...] | None:
    """Layer numbers as given, or None for all."""
    if layers is None:
        return None
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable) or getattr(layers, "ndim", 1) == 0:
        layers = [layers]
    numbers = tuple(_layer_number(layer) for layer in layers)
    if not numbers:
        raise UnknownLayerError("layers is empty; expected one layer, several, or None for all.")
    repeated = [number for number in dict.fromkeys(numbers) if numbers.count(number) > 1]
    if repeated:
        raise UnknownLayerError(f"layers names {repeated[0]} more than once: {list(numbers)}.")
    return numbers


def one_layer(layer: Any) -> int:
    """The number of a single layer."""
    numbers = layer_numbers(layer)
    if numbers is None or len(numbers) != 1:
        raise UnknownLayerError(f"layer is {layer!r}; expected one number, such as 0 or -1.")
    return numbers[0]


def _layer_number(layer: Any) -> int:
    try:
        if isinstance(layer, bool):
            raise TypeError
        return operator.index(layer)
    except TypeError:
        raise UnknownLayerError(
            f"{layer!r} is no layer; expected an int, several ints, or None for all, such as layers=[0, -1]."
        ) from None


def scope_names(scopes: Any) -> str | tuple[str, ...] | None:
    """Scopes as given; the names themselves are checked against a model's chain."""
    if scopes is None or isinstance(scopes, str):
        return scopes
    if isinstance(scopes, Iterable) and not isinstance(scopes, bytes):
        names = tuple(scopes)
        wrong = next((name for name in names if not isinstance(name, str)), None)
        if names and wrong is None:
            return names
        found = "nothing" if not names else f"{wrong!r} among them"
    else:
        found = repr(scopes)
    raise UnknownScopeError(f"scopes: expected a name, several names, 'all' or None, found {found}.")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
        expected = " or ".join(map(repr, allowed))
        raise UnknownOptionError(f"{name} is {value!r}; expected {expected}.")


def _count(name: str, value: Any, what: str) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, float):
            number = int(value) if value.is_integer() else 0
        else:
            number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UnknownOptionError(f"{name} is {value!r}; expected a number of {what}, at least 1, or None.")
    return number
