"""Norm-based analysis of transformer blocks, from a TransformerLens cache: what each source token contributed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .composition import (
        attention_flow,
        rollout,
    )
    from .cross import (
        CrossNorms,
        cross_norms,
    )
    from .decomposition import (
        Decomposition,
    )
    from .errors import (
        AttentionPatternError,
        CacheShapeError,
        DecompositionError,
        MapError,
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
        UnknownPositionError,
        UnknownScopeError,
        UnsupportedArchitectureError,
        WeightProcessingWarning,
    )
    from .hooks import (
        NormRecorder,
        run_with_norms,
    )
    from .linear.measure.measures import (
        Onto,
    )
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
    from .results import (
        BlockNorms,
        MixingShares,
    )

__version__ = "0.1.0"

__all__ = [
    "AttentionPatternError",
    "BlockNorms",
    "CacheShapeError",
    "CrossNorms",
    "Decomposition",
    "DecompositionError",
    "MapError",
    "MaskError",
    "MemoryBudgetError",
    "MissingActivationError",
    "MissingExtraError",
    "MixingShares",
    "NonFiniteError",
    "NormRecorder",
    "NotACacheError",
    "Onto",
    "RecorderError",
    "TLNormsError",
    "UnknownLayerError",
    "UnknownOptionError",
    "UnknownPositionError",
    "UnknownScopeError",
    "UnsupportedArchitectureError",
    "WeightProcessingWarning",
    "attention_flow",
    "block_norms",
    "cross_norms",
    "decompose",
    "extend_cache",
    "ffn_maps",
    "required_hooks",
    "rollout",
    "run_with_norms",
    "scopes",
    "value_norms",
    "value_vectors",
    "weighted_value_norms",
]

_HOME = {
    "attention_flow": "composition",
    "rollout": "composition",
    "cross_norms": "cross",
    "AttentionPatternError": "errors",
    "CacheShapeError": "errors",
    "UnknownPositionError": "errors",
    "DecompositionError": "errors",
    "MapError": "errors",
    "MaskError": "errors",
    "MemoryBudgetError": "errors",
    "MissingActivationError": "errors",
    "MissingExtraError": "errors",
    "NonFiniteError": "errors",
    "NotACacheError": "errors",
    "RecorderError": "errors",
    "TLNormsError": "errors",
    "UnknownLayerError": "errors",
    "UnknownOptionError": "errors",
    "UnknownScopeError": "errors",
    "UnsupportedArchitectureError": "errors",
    "WeightProcessingWarning": "errors",
    "Onto": "linear.measure.measures",
    "NormRecorder": "hooks",
    "run_with_norms": "hooks",
    "block_norms": "norms",
    "decompose": "norms",
    "extend_cache": "norms",
    "ffn_maps": "norms",
    "required_hooks": "norms",
    "scopes": "norms",
    "value_norms": "norms",
    "value_vectors": "norms",
    "weighted_value_norms": "norms",
    "BlockNorms": "results",
    "CrossNorms": "cross",
    "Decomposition": "decomposition",
    "MixingShares": "results",
}


def __getattr__(name: str):
    """Import a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
