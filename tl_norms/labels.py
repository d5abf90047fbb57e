"""What to call the parts of a run in tables and pictures: the strings of its tokens, the name of its model."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UnknownOptionError

Tokens = Sequence[str] | Sequence[Sequence[str]]
Strings = tuple[tuple[str, ...], ...]
_decoded: "weakref.WeakKeyDictionary[Any, tuple[int, dict[int, str]]]" = weakref.WeakKeyDictionary()
_IDS, _DECODER_IDS = "embed.hook_in", "decoder_embed.hook_in"


def digits(value: float, n: int, sign: str = "") -> str:
    """A number in n digits, for tables and titles: thousands apart, an exponent from a million on; `sign` "+" or ""."""
    short = float(f"{value:.{n}g}")
    return f"{short:{sign},.0f}" if 10**n <= abs(short) < 1e6 else f"{value:{sign}.{n}g}"


def model_name(model: nn.Module) -> str:
    """The name that the model was loaded by, or else the name of its class."""
    name = getattr(getattr(model, "cfg", None), "model_name", None)
    if name in (None, "", "external"):  # what TransformerLens calls a model that it was given
        name = type(getattr(model, "original_model", model)).__name__
    return str(name)


def id_hook(model: nn.Module, stack: str | None = None) -> str:
    """The hook that holds the token ids of a stack of blocks, the decoder's of an encoder-decoder for None."""
    decoder = hasattr(model, "decoder_blocks") and (stack is None or stack.startswith("decoder"))
    return _DECODER_IDS if decoder else _IDS


def strings_of_ids(tensors: Mapping[str, Tensor], model: nn.Module, stack: str | None = None) -> Strings | None:
    """The tokens of every text as the model's tokenizer decodes them; None without token ids or tokenizer.

    Args:
        tensors: a cache's, by hook name
        model: the model, whose tokenizer is asked
        stack: as for `id_hook`
    """
    ids, tokenizer = tensors.get(id_hook(model, stack)), getattr(model, "tokenizer", None)
    if tokenizer is None or not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim not in (1, 2):
        return None
    rows = (ids if ids.ndim == 2 else ids[None]).tolist()
    decoded = _known_strings(tokenizer)
    for token in {token for row in rows for token in row if token not in decoded}:
        decoded[token] = tokenizer.decode([token])
    return tuple(tuple(decoded[token] for token in row) for row in rows)


def _known_strings(tokenizer: Any) -> dict[int, str]:
    """The tokens that this tokenizer has decoded before; a tokenizer that was given more tokens starts anew."""
    try:
        size, known = _decoded.setdefault(tokenizer, (len(tokenizer), {}))
        if size != len(tokenizer):
            _decoded[tokenizer] = _, known = len(tokenizer), {}
    except TypeError:  # a tokenizer of another kind: no length, no weak references
        return {}
    return known


def given_strings(given: Sequence[Any], n_texts: int, n: int, mask: Tensor | None, *, n_source: int = 0) -> Strings:
    """Strings as a user gives them, one row per text and one string per position.

    Args:
        given: the tokens of the text, or one list per text; of all positions, or of those that are not padding (the
            others are then called ""); a decoder's may be followed by the encoder's
        n_texts, n: texts and positions
        mask: True at real positions, [text pos], or None
        n_source: positions of the encoder

    Raises:
        UnknownOptionError: they do not fit the texts or the positions.
    """
    rows = [list(given)] if all(isinstance(one, str) for one in given) else [list(row) for row in given]
    if len(rows) != n_texts:
        raise UnknownOptionError(f"tokens= has the tokens of {len(rows)} texts; expected those of {n_texts}.")
    found = []
    for number, row in enumerate(rows):
        real = None if mask is None else mask[number].tolist()
        if len(row) in (n, n + n_source):
            found.append(tuple(row))
        elif real is not None and len(row) == sum(real):
            words = iter(row)
            found.append(tuple(next(words) if there else "" for there in real))
        else:
            raise UnknownOptionError(
                f"tokens= has {len(row)} tokens for text {number}; expected {n}, one per position: pass "
                f"model.to_str_tokens(text)."
            )
    return tuple(found)


def checked_tokens(tokens: Any) -> tuple[Any, ...] | None:
    """The option `tokens=` as it must be: strings, or one list of strings per text.

    Raises:
        UnknownOptionError: it is something else.
    """
    if tokens is None:
        return None
    if isinstance(tokens, Sequence) and not isinstance(tokens, str | bytes):
        rows = [tokens] if all(isinstance(one, str) for one in tokens) else list(tokens)
        if len(tokens) and all(_are_strings(row) for row in rows):
            return tuple(tokens) if rows[0] is tokens else tuple(tuple(row) for row in rows)
    raise UnknownOptionError(
        f"tokens is {str(tokens)[:80]!r}; expected the tokens of the text as a list of strings, or one list per text: "
        f"model.to_str_tokens(text)."
    )


def _are_strings(row: Any) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, str | bytes) and all(isinstance(one, str) for one in row)


def strings_of_run(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    stack: str | None,
    given: Sequence[Any] | None,
    mask: Tensor | None,
    shape: tuple[int, int, int],
) -> tuple[Strings | None, Strings | None]:
    """The strings of a stack's positions, and of the encoder's where there are `shape[2]` of them.

    Args:
        tensors: a cache's, by hook name
        model, stack: whose
        given: the option `tokens=`
        mask: True at real positions, [text pos], or None
        shape: texts, positions, positions of the encoder
    """
    n_texts, n, n_source = shape
    own, source = strings_of_ids(tensors, model, stack), None
    if n_source:
        source = _fitting(strings_of_ids(tensors, model, "encoder"), n_texts, n_source)
    if given is None:
        return _fitting(own, n_texts, n), source
    rows = given_strings(given, n_texts, n, None if mask is None else torch.as_tensor(mask).bool(), n_source=n_source)
    if n_source and all(len(row) == n + n_source for row in rows):
        source = tuple(row[n:] for row in rows)
    return tuple(row[:n] for row in rows), source


def strings_of_both(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    given: tuple[Sequence[Any] | None, Sequence[Any] | None],
    masks: tuple[Tensor | None, Tensor | None],
    shape: tuple[int, int, int],
) -> tuple[Strings | None, Strings | None]:
    """The strings of the positions of a decoder and of its encoder, each as given or else as decoded.

    Args:
        tensors: a cache's, by hook name
        model: whose
        given: the options `tokens=` and `source_tokens=`, checked
        masks: True at real positions, [text pos], or None
        shape: texts, positions, positions of the encoder

    Raises:
        UnknownOptionError: tokens that do not fit.
    """
    n_texts, *lengths = shape
    found = []
    for stack, words, mask, n in zip((None, "encoder"), given, masks, lengths, strict=True):
        if words is None:
            found.append(_fitting(strings_of_ids(tensors, model, stack), n_texts, n) if n else None)
        else:
            found.append(given_strings(words, n_texts, n, None if mask is None else torch.as_tensor(mask).bool()))
    return found[0], found[1]


def _fitting(strings: Strings | None, n_texts: int, n: int) -> Strings | None:
    """Ids that are not those of the positions analysed (a prefix was added, a model without text) name nothing."""
    fits = strings is not None and len(strings) == n_texts and all(len(row) == n for row in strings)
    return strings if fits else None
