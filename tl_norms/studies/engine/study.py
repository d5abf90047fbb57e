"""What a study is to the engine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ..errors import StudyInputError, UnfitTextError
from .corpus import Item
from .partial import Mergeable
from .tokens import Batch, Window, windows


@dataclass(frozen=True)
class Reading:
    """How texts become batches.

    Attributes:
        max_length, stride: see `tl_norms.studies.RunOptions`
        batch_tokens: positions per batch, padding included
        mask_tokens: share of tokens replaced by the mask token, None for none
        seed: of the choice of masked tokens
        pad: False for batches of texts of one length, where padding is expensive: maps after a feed-forward
    """

    max_length: int | None = None
    stride: int | None = None
    batch_tokens: int = 4096
    mask_tokens: float | None = None
    seed: int = 0
    pad: bool = True


@dataclass(frozen=True)
class Study(ABC):
    """What is measured: a frozen dataclass of options, so that it can be sent to other processes and compared.

    Attributes:
        name: what progress bars and files call it
    """

    name: ClassVar[str]

    def check(self, model: nn.Module) -> None:
        """Refuse models that this study cannot measure; by default those that read two texts at once.

        Raises:
            TLNormsError: with what to do instead.
        """
        if any(hasattr(model, name) for name in ("decoder_blocks", "decoder")):
            raise StudyInputError(
                f"{type(getattr(model, 'original_model', model)).__name__} is an encoder-decoder, and this study takes "
                f"texts, not pairs of source and target. studies.alignment takes pairs, tl_norms.block_norms single "
                f"caches."
            )

    def windows(self, model: nn.Module, item: Item, reading: Reading) -> list[Window]:
        """The model's input for one text.

        Raises:
            UnfitTextError: the text has to be left out.
        """
        found = windows(model, item, max_length=reading.max_length, stride=reading.stride)
        if not found[0].ids:
            raise UnfitTextError("has no tokens")
        n_vocabulary = int(getattr(model.cfg, "d_vocab", 0) or 0)
        largest = max(max(window.ids) for window in found)
        if 0 < n_vocabulary <= largest:
            raise UnfitTextError(f"holds token id {largest}, outside the vocabulary of {n_vocabulary}")
        return found

    @abstractmethod
    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        """The measurements of one batch, by name, reduced to what is needed at the end."""
