"""What attributions are judged on: inputs with a good and a bad continuation, and the tokens that decide.

    from tl_norms.faithfulness import tasks
    tasks.agreement(model, 200, attractors=(0, 2, 4))
    tasks.from_rows("mine.csv", model, evidence="subject")

Templates are filled with words that are single tokens in the model's own tokenizer; nothing is downloaded.
"""

from collections.abc import Callable
from typing import Any

from ..errors import FaithfulnessInputError
from .probing import subjects
from .rows import from_datasets, from_pairs, from_rows, next_token
from .task import Example, Excluded, Task
from .templates import (
    agreement,
    anaphor_gender,
    anaphor_number,
    colours,
    copying,
    determiner_noun,
    indirect_object,
    polarity,
)

NAMES: dict[str, Callable[..., Task]] = {
    "agreement": agreement,
    "anaphor-gender": anaphor_gender,
    "anaphor-number": anaphor_number,
    "determiner-noun": determiner_noun,
    "ioi": indirect_object,
    "copying": copying,
    "colours": colours,
    "polarity": polarity,
    "subjects": subjects,
}


def named(name: str, model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """A task of templates by its name: one of `NAMES`.

    Raises:
        FaithfulnessInputError: there is no such task.
        TaskError: the tokenizer lacks its words.
    """
    if name not in NAMES:
        raise FaithfulnessInputError(f"there is no task {name!r}; expected one of {', '.join(NAMES)}.")
    return NAMES[name](model, n, seed=seed)


__all__ = [
    "NAMES",
    "Example",
    "Excluded",
    "Task",
    "agreement",
    "anaphor_gender",
    "anaphor_number",
    "colours",
    "copying",
    "determiner_noun",
    "from_datasets",
    "from_pairs",
    "from_rows",
    "indirect_object",
    "named",
    "next_token",
    "polarity",
    "subjects",
]
