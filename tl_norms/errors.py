"""One family of errors: each message says what was expected, what was found, and the line that fixes it."""


class TLNormsError(Exception):
    """Base of everything this package raises on purpose."""


class NotACacheError(TLNormsError, TypeError):
    """The object given is not an `ActivationCache` that knows its model."""


class MissingActivationError(TLNormsError, KeyError):
    """The cache lacks an activation that the requested scope needs."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class AttentionPatternError(MissingActivationError):
    """The model ran with fused attention, so that no attention pattern exists."""


class UnknownScopeError(TLNormsError, ValueError):
    """The scope is not in this model's chain."""


class UnknownLayerError(TLNormsError, IndexError):
    """The layer does not exist, or has no attention."""


class UnknownPositionError(TLNormsError, IndexError):
    """The position does not exist."""


class CacheShapeError(TLNormsError, ValueError):
    """The cached activations do not belong together: of other batches, or of some positions only."""


class UnknownOptionError(TLNormsError, ValueError):
    """An option has a value that means nothing."""


class MaskError(TLNormsError, ValueError):
    """The mask has the wrong shape, or contradicts the attention pattern."""


class NonFiniteError(TLNormsError, ValueError):
    """An activation holds NaN or infinity."""


class DecompositionError(TLNormsError):
    """The parts do not add up to the model's own activation."""


class UnsupportedArchitectureError(TLNormsError, NotImplementedError):
    """A component of this model is not understood, so no number is returned for it."""


class MemoryBudgetError(TLNormsError, MemoryError):
    """The memory budget is below the smallest piece of work."""


class MapError(TLNormsError, ValueError):
    """Maps of layers cannot be composed: their shape, a row of zeros, a negative capacity, a number out of range."""


class RecorderError(TLNormsError, RuntimeError):
    """A recorder was used for two runs, or asked for results it does not have."""


class MissingExtraError(TLNormsError, ImportError):
    """An optional dependency is not installed."""


class WeightProcessingWarning(UserWarning):
    """The model's weights were processed: predictions stay, norms change."""
