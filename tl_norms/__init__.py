"""Norm-based analysis of transformer blocks, from a TransformerLens cache: what each source token contributed."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import alignment as alignment
    from . import faithfulness as faithfulness
    from . import methods as methods
    from . import metrics as metrics
    from . import plot as plot
    from . import studies as studies
    from .attribution import (
        attribute,
        direct_attribution,
        run_with_attribution,
        top_target,
    )
    from .attribution_result import (
        Attribution,
        DirectAttribution,
    )
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
    from .estimates import (
        Estimate,
        estimate,
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
    from .past import (
        with_past_values,
    )
    from .projections import (
        project_heads,
    )
    from .propagation import (
        propagate,
        run_with_propagation,
    )
    from .propagation_result import (
        TokenNorms,
    )
    from .results import (
        BlockNorms,
        MixingShares,
    )
    from .storage import (
        ResultFileError,
        load,
    )
    from .targets import (
        Target,
        TargetError,
        class_logit,
        direction,
        logit,
        probability,
    )

__version__ = "0.1.0"

__all__ = [
    "AttentionPatternError",
    "Attribution",
    "BlockNorms",
    "CacheShapeError",
    "CrossNorms",
    "Decomposition",
    "DecompositionError",
    "DirectAttribution",
    "Estimate",
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
    "ResultFileError",
    "TLNormsError",
    "Target",
    "TargetError",
    "TokenNorms",
    "UnknownLayerError",
    "UnknownOptionError",
    "UnknownPositionError",
    "UnknownScopeError",
    "UnsupportedArchitectureError",
    "WeightProcessingWarning",
    "attention_flow",
    "attribute",
    "block_norms",
    "class_logit",
    "cross_norms",
    "decompose",
    "direct_attribution",
    "direction",
    "estimate",
    "extend_cache",
    "ffn_maps",
    "load",
    "logit",
    "probability",
    "project_heads",
    "propagate",
    "required_hooks",
    "rollout",
    "run_with_attribution",
    "run_with_norms",
    "run_with_propagation",
    "scopes",
    "top_target",
    "value_norms",
    "value_vectors",
    "weighted_value_norms",
    "with_past_values",
]

_HOME = {
    "attribute": "attribution",
    "direct_attribution": "attribution",
    "run_with_attribution": "attribution",
    "top_target": "attribution",
    "Attribution": "attribution_result",
    "DirectAttribution": "attribution_result",
    "project_heads": "projections",
    "Estimate": "estimates",
    "estimate": "estimates",
    "propagate": "propagation",
    "run_with_propagation": "propagation",
    "TokenNorms": "propagation_result",
    "Target": "targets",
    "TargetError": "targets",
    "class_logit": "targets",
    "direction": "targets",
    "logit": "targets",
    "probability": "targets",
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
    "with_past_values": "past",
    "BlockNorms": "results",
    "CrossNorms": "cross",
    "Decomposition": "decomposition",
    "MixingShares": "results",
    "load": "storage",
    "ResultFileError": "storage",
}


_PACKAGES = ("alignment", "demo", "faithfulness", "methods", "metrics", "page", "plot", "storage", "studies")


def __getattr__(name: str):
    """Import a public name or package when it is first used: the command line starts without torch."""
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
