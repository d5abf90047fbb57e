"""The words of a page: which text, its tokens, the name of the model."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..labels import Tokens
from .errors import PageInputError


def chosen_text(n_texts: int | None, batch: int | None) -> int | None:
    """The text to show: the only one, or the one asked for; None without a batch axis."""
    if n_texts is None:
        if batch not in (None, 0):
            raise PageInputError(f"this result has no batch axis, so that there is no text {batch}: leave batch= out.")
        return None
    if batch is None:
        if n_texts != 1:
            raise PageInputError(
                f"a page shows one text, this result has {n_texts}: say which one, batch=0 to batch={n_texts - 1}."
            )
        return 0
    if isinstance(batch, bool) or not isinstance(batch, int) or not -n_texts <= batch < n_texts:
        raise PageInputError(f"there is no text {batch!r}: this result has {n_texts}, batch=0 to batch={n_texts - 1}.")
    return batch % n_texts


def kept_tokens(result: Any) -> Tokens:
    """The token strings kept with a result."""
    found = getattr(result, "token_strings", None)
    if found is None:
        raise PageInputError("this result keeps no token strings: pass tokens=, those of the text.")
    return found


def of_text(tokens: Tokens, batch: int | None) -> list[str]:
    """The tokens of the chosen text, given for one text or for all."""
    given = list(tokens)
    if given and not isinstance(given[0], str):
        if batch is None:
            if len(given) != 1:
                raise PageInputError(f"tokens of {len(given)} texts were given, and this result has one.")
            return [str(token) for token in given[0]]
        if not batch < len(given):
            raise PageInputError(f"tokens of {len(given)} texts were given, and text {batch} is asked for.")
        return [str(token) for token in given[batch]]
    return [str(token) for token in given]


def fitted(tokens: list[str], kept: Tensor) -> list[str]:
    """The tokens at real positions: given for all positions or for those."""
    if len(tokens) == len(kept):
        return [token for token, real in zip(tokens, kept.tolist(), strict=True) if real]
    if len(tokens) == int(kept.sum()):
        return tokens
    raise PageInputError(
        f"this result has {len(kept)} positions, but {len(tokens)} tokens were given: pass those of the text."
    )


def row_of(mask: Tensor | None, batch: int | None, n: int) -> Tensor:
    """True at real positions of the text, [pos]; all of them without a mask."""
    if mask is None:
        return torch.ones(n, dtype=torch.bool)
    rows = mask.detach().cpu().bool()
    return rows[0 if batch is None else batch] if rows.ndim == 2 else rows


def short_name(model: str) -> str:
    """The end of a path or of a hub's name; of a file, its name."""
    parts = [part for part in str(model).split("/") if part]
    return "/".join(parts[-1:] if str(model).endswith(".gguf") else parts[-2:]) or "model"


def versions(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Versions to name at the foot of a page: those given, or those installed."""
    if given is not None:
        return {name: str(value) for name, value in given.items()}
    from .. import __version__

    found = {"tl_norms": __version__}
    for package in ("transformer_lens", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a library put on the path by hand
            continue
    return found
