"""The papers' measurements over a corpus: any model, any iterable of texts, stopped and resumed, here or on a cluster.

    from tl_norms import studies
    result = studies.mixing_ratio(model, texts, resume="mixing.npz")
    result.to_dataframe()

Each study takes a model and texts and returns a frozen dataclass. Options that all of them take are in `RunOptions`.
"""

from .alignment import alignment
from .amplified import AmplifiedPairs, amplified_pairs
from .cancellation import cancellation
from .categories import token_categories, token_types
from .change import Changes, contextualization_change
from .dispersion import ValueNormDispersion, value_norm_dispersion
from .engine.correlation import Spearman
from .engine.lines import TextFile
from .engine.options import RunOptions
from .engine.partial import Excluded, Partial
from .engine.run import CorpusFacts
from .error_rates import Alignments
from .errors import ExcludedTextWarning, ResumeError, StudyFailedError, StudyInputError, TruncatedTextWarning
from .expansion import ExpansionRates, expansion_rate
from .frequency import Frequency, frequency
from .mixing import MixingRatios, mixing_ratio
from .ranks import read_ranks
from .weight import WeightAgainstNorm, weight_against_norm

__all__ = [
    "Alignments",
    "AmplifiedPairs",
    "Changes",
    "CorpusFacts",
    "Excluded",
    "ExcludedTextWarning",
    "ExpansionRates",
    "Frequency",
    "MixingRatios",
    "Partial",
    "ResumeError",
    "RunOptions",
    "Spearman",
    "StudyFailedError",
    "StudyInputError",
    "TextFile",
    "TruncatedTextWarning",
    "ValueNormDispersion",
    "WeightAgainstNorm",
    "alignment",
    "amplified_pairs",
    "cancellation",
    "contextualization_change",
    "expansion_rate",
    "frequency",
    "mixing_ratio",
    "read_ranks",
    "token_categories",
    "token_types",
    "value_norm_dispersion",
    "weight_against_norm",
]
