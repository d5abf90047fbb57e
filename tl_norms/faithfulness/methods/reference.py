"""The reference that embeddings are compared with."""

from typing import Any

from torch import nn

from ..errors import FaithfulnessInputError

Baseline = str | int | None
"""The reference embedding: "space" for that of the space token, a token id, or None for zero."""


def reference_token(model: nn.Module, baseline: str | int) -> int:
    """The token id of a baseline.

    Raises:
        FaithfulnessInputError: this tokenizer has no space token, or the name means nothing.
    """
    if isinstance(baseline, int):
        return baseline
    if baseline != "space":
        raise FaithfulnessInputError(f"baseline is {baseline!r}; expected 'space', a token id or None.")
    tokenizer: Any = getattr(model, "tokenizer", None)
    ids = [] if tokenizer is None else tokenizer(" ", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    for name in ("mask_token_id", "unk_token_id", "pad_token_id"):  # tokenizers that drop blanks: BERT's
        number = getattr(tokenizer, name, None)
        if number is not None:
            return int(number)
    raise FaithfulnessInputError("this tokenizer has no space token: give the id of a reference token, baseline=<id>.")
