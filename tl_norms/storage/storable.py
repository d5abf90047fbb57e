"""What every result can do: be saved, and be moved to another device."""

from os import PathLike

import torch
from typing_extensions import Self


class Storable:
    """A frozen dataclass of tensors, numbers, strings, tuples and dicts whose name is in `storage.classes.CLASSES`."""

    __slots__ = ()

    def save(self, path: str | PathLike) -> None:
        """Write this result to one file, which `tl_norms.load` reads: safetensors, with JSON inside.

        Tensors keep their dtype to the bit. The file holds no weights of the model and no code.

        Args:
            path: the file; one that is there is replaced

        Raises:
            ResultPathError: it cannot be written.
            UnstorableError: the result holds a value that files do not hold.
            MissingExtraError: safetensors is not installed.

        Example:
            >>> norms.save("norms.safetensors")                                 # doctest: +SKIP
            >>> norms = tl_norms.load("norms.safetensors")                      # doctest: +SKIP
        """
        from .file import save

        save(self, path)

    def to(self, device: torch.device | str) -> Self:
        """The same result with all tensors on a device; this one stays as it is.

        Example:
            >>> norms.to("cuda")                                                # doctest: +SKIP
        """
        from .tree import moved

        return moved(self, device)

    def cpu(self) -> Self:
        """The same result with all tensors in main memory."""
        return self.to("cpu")

    def for_storage(self) -> Self:
        """What is written: this result, unless a class says otherwise."""
        return self
