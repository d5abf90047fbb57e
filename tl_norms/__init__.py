"""Norm-based analysis of transformer blocks, from a TransformerLens cache: what each source token contributed."""

from .errors import (
    AttentionPatternError,
    DecompositionError,
    MaskError,
    MemoryBudgetError,
    MissingActivationError,
    MissingExtraError,
    NonFiniteError,
    NotACacheError,
    RecorderError,
    TLNormsError,
    UnknownLayerError,
    UnknownOptionError,
    UnknownScopeError,
    UnsupportedArchitectureError,
    WeightProcessingWarning,
)
from .hooks import NormRecorder, run_with_norms
from .norms import (
    block_norms,
    decompose,
    extend_cache,
    ffn_maps,
    required_hooks,
    scopes,
    value_norms,
    value_vectors,
    weighted_value_norms,
)
from .results import BlockNorms, Decomposition

__version__ = "0.1.0"

__all__ = [
    "AttentionPatternError",
    "BlockNorms",
    "Decomposition",
    "DecompositionError",
    "MaskError",
    "MemoryBudgetError",
    "MissingActivationError",
    "MissingExtraError",
    "NonFiniteError",
    "NormRecorder",
    "NotACacheError",
    "RecorderError",
    "TLNormsError",
    "UnknownLayerError",
    "UnknownOptionError",
    "UnknownScopeError",
    "UnsupportedArchitectureError",
    "WeightProcessingWarning",
    "block_norms",
    "decompose",
    "extend_cache",
    "ffn_maps",
    "required_hooks",
    "run_with_norms",
    "scopes",
    "value_norms",
    "value_vectors",
    "weighted_value_norms",
]
