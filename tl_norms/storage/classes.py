"""The classes that a file may name, and where they live. Nothing else is ever made from a file."""

import importlib
from dataclasses import is_dataclass

from .errors import UnknownResultError

# name in a file -> module; a class keeps its name in files even if it moves
CLASSES = {
    "AbsoluteSum": "linear.measure.measures",
    "Alignments": "studies.error_rates",
    "Alti": "linear.measure.measures",
    "AmplifiedPairs": "studies.amplified",
    "Attribution": "attribution_result",
    "BlockNorms": "results",
    "Cancellation": "metrics.cancellation",
    "Changes": "studies.change",
    "ComposedMaps": "methods.results",
    "CorpusFacts": "studies.engine.run",
    "Credit": "backward",
    "CrossNorms": "cross",
    "DecompX": "methods.decompx",
    "DirectAttribution": "attribution_result",
    "Edit": "edits",
    "Excluded": "studies.engine.partial",
    "ExpansionRates": "studies.expansion",
    "FFAmplification": "metrics.amplification",
    "FlowEdge": "methods.routes",
    "Frequency": "studies.frequency",
    "HeadNorms": "results",
    "InformationFlow": "methods.routes",
    "KeptEdges": "backward",
    "Length": "linear.measure.measures",
    "MixingRatios": "studies.mixing",
    "MixingShares": "results",
    "Onto": "linear.measure.measures",
    "Ranking": "ranking",
    "RunFacts": "results",
    "ScopeNorms": "results",
    "Share": "linear.measure.measures",
    "Spearman": "studies.engine.correlation",
    "StackCredit": "backward",
    "TokenNorms": "propagation_result",
    "ValueNormDispersion": "studies.dispersion",
    "WeightAgainstNorm": "studies.weight",
}


def class_named(name: object) -> type:
    """The dataclass of that name.

    Raises:
        UnknownResultError: there is none.
    """
    home = CLASSES.get(name) if isinstance(name, str) else None
    if home is None:
        raise UnknownResultError(
            f"the file holds a {name!r}, which this version of tl_norms does not know: pip install -U tl_norms"
        )
    found = getattr(importlib.import_module(f"tl_norms.{home}"), str(name))
    if not isinstance(found, type) or not is_dataclass(found):
        raise UnknownResultError(f"{name!r} is no dataclass.")
    return found


def is_known(value: object) -> bool:
    """Whether a file may hold this object."""
    kind = type(value)
    home = CLASSES.get(kind.__name__)
    return home is not None and kind.__module__ == f"tl_norms.{home}"
