"""What can go wrong when attributions are judged."""

from ..errors import TLNormsError


class FaithfulnessInputError(TLNormsError, ValueError):
    """A task, method, metric or removal that does not exist, or an option that means nothing."""


class TaskError(TLNormsError, ValueError):
    """A task cannot be made for this tokenizer, or of these rows."""


class MethodOutputError(TLNormsError, ValueError):
    """A method did not return one finite number per position."""


class RemovalError(TLNormsError, RuntimeError):
    """A removed position still influences this model's output, so no number is measured with this removal."""
