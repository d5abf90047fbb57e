"""Tables."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError

if TYPE_CHECKING:
    import pandas


def frame(columns: dict[str, Any]) -> "pandas.DataFrame":
    """A table of these columns.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("to_dataframe needs pandas: pip install 'tl_norms[metrics]'") from error
    return pandas.DataFrame(columns)


def long(axes: dict[str, Any], values: dict[str, np.ndarray]) -> "pandas.DataFrame":
    """One row per cell of arrays that share their axes: a column per axis, a column per array."""
    shape = tuple(len(labels) for labels in axes.values())
    grid = np.indices(shape).reshape(len(shape), -1)
    columns: dict[str, Any] = {}
    for (name, labels), where in zip(axes.items(), grid, strict=True):
        columns[name] = [labels[number] for number in where]
    return frame(columns | {name: np.asarray(array).reshape(-1) for name, array in values.items()})
