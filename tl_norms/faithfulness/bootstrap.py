"""Intervals of means over examples."""

import numpy as np
from jaxtyping import Bool, Float


def interval(
    values: Float[np.ndarray, "example cell"],
    scale: Float[np.ndarray, " example"] | None = None,
    scaled: Bool[np.ndarray, " cell"] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Mean and 95 % percentile interval by resampling examples; nan values are left out.

    Args:
        values: [example cell]
        scale, scaled: for these cells the ratio of sums, sum of values / sum of scale, instead of the mean
        resamples: how many
        seed: the same for all methods, so that they are resampled together

    Returns:
        mean, low, high; nan for cells without a number.
    """
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    weights = np.concatenate([np.ones((1, n)), counts])
    known = np.isfinite(values)
    sums = weights @ np.where(known, values, 0)
    below = weights @ known.astype(np.float64)
    if scale is not None and scaled is not None:
        below = np.where(scaled, weights @ np.where(known, scale[:, None], 0), below)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(below == 0, np.nan, sums / below)
    low, high = (
        np.array(
            [np.nan if not np.isfinite(column).any() else np.nanpercentile(column, share) for column in means[1:].T]
        )
        for share in (2.5, 97.5)
    )
    return means[0], low, high
