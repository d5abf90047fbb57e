"""Word alignments from cross-attention: links in and out, alignment error rate, and how links come from maps.

    from tl_norms import alignment
    found = alignment.align(model, [("das Haus", "the house")])
    alignment.alignment_error_rate(found.links("AWI", "norm", layer=1), alignment.read_gold("gold.txt"))

Links are (source word, target word), both from 0. Kobayashi et al. 2020, section 5: vector norms of cross-attention
find alignments that its weights miss. `tl_norms.studies.alignment` measures a whole corpus.
"""

from .encoding import encode_pair
from .error_rate import AlignmentErrorRate, alignment_error_rate
from .errors import AlignmentFormatError, AlignmentInputError, TokenizerSchemeError
from .extraction import CrossMaps, Method, Setting, WordAlignments, extract, word_maps
from .forcing import align, teacher_forced
from .formats import read_gold, read_naacl, read_pharaoh
from .links import GoldLinks
from .merging import merge_words
from .pairs import EncodedPair, SentencePair, read_pairs
from .subwords import Scheme, subword_scheme, word_groups
from .writing import write_naacl, write_pharaoh

__all__ = [
    "AlignmentErrorRate",
    "AlignmentFormatError",
    "AlignmentInputError",
    "CrossMaps",
    "EncodedPair",
    "GoldLinks",
    "Method",
    "Scheme",
    "SentencePair",
    "Setting",
    "TokenizerSchemeError",
    "WordAlignments",
    "align",
    "alignment_error_rate",
    "encode_pair",
    "extract",
    "merge_words",
    "read_gold",
    "read_naacl",
    "read_pairs",
    "read_pharaoh",
    "subword_scheme",
    "teacher_forced",
    "word_groups",
    "word_maps",
    "write_naacl",
    "write_pharaoh",
]
