"""Errors of pages."""

from ..errors import TLNormsError


class PageInputError(TLNormsError, ValueError):
    """A page cannot be made of this result, or its tokens do not fit."""


class OutputError(TLNormsError, OSError):
    """A file cannot be written."""
