"""What the feed-forward block does to a map: how much, to which pairs, and how much of it survives (ICLR 2024)."""

from .amplification import FFAmplification, ff_amplification
from .cancellation import Cancellation, cancellation
from .change import MetricsInputError, component_changes, contextualization_change

__all__ = [
    "Cancellation",
    "FFAmplification",
    "MetricsInputError",
    "cancellation",
    "component_changes",
    "contextualization_change",
    "ff_amplification",
]
