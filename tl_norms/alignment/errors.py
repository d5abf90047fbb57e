"""What can be wrong with alignments and with what they are made from."""

from ..errors import TLNormsError


class AlignmentFormatError(TLNormsError, ValueError):
    """A line of an alignment file or of a file of sentence pairs cannot be read; the message has its number."""


class AlignmentInputError(TLNormsError, ValueError):
    """Alignments, sentences or options do not fit together: counts that differ, links out of range, bad options."""


class TokenizerSchemeError(TLNormsError, ValueError):
    """Nothing in the tokenizer tells where words begin, or it makes other words than those given."""
