"""What can be wrong with a file of a result."""

from ..errors import TLNormsError


class ResultFileError(TLNormsError, ValueError):
    """A result cannot be read from a file, or written to one."""


class ResultPathError(ResultFileError, OSError):
    """The path cannot be read or written."""


class NotAResultError(ResultFileError):
    """The file was not written by `save` of a result."""


class NewerFileError(ResultFileError):
    """The file was written by a newer version, in a form that this one does not know."""


class UnknownResultError(ResultFileError):
    """The file names a class that this version does not know."""


class DamagedFileError(ResultFileError):
    """The file is cut off, or its parts do not fit together."""


class UnstorableError(ResultFileError):
    """The result holds a value that is none of: tensor, array, number, string, tuple, list, dict, known dataclass."""
