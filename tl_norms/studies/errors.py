"""What can go wrong with a study, and what is left out of it."""

from ..errors import TLNormsError


class StudyInputError(TLNormsError, ValueError):
    """The corpus, the ranks or the options of a study cannot be used."""


class UnfitTextError(StudyInputError):
    """One text cannot be measured: it is left out and named in the result. Never reaches the user."""


class ResumeError(TLNormsError, ValueError):
    """The file to resume from belongs to another study, model, corpus or set of options, or cannot be read."""


class StudyFailedError(TLNormsError, RuntimeError):
    """A part of the corpus could not be measured, twice."""


class ExcludedTextWarning(UserWarning):
    """Some texts are not in the result."""


class TruncatedTextWarning(UserWarning):
    """Some texts were longer than the context and lost their ends."""
