"""Arrays as short text: half precision, scaled so that it loses no small number, in base64."""

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST = 60000.0  # float16 ends at 65504; its smallest number of full precision is a 10⁹th of that


def packed(values: Tensor) -> dict[str, Any]:
    """[slice ...] as float16 numbers with one scale per slice (a layer, mostly).

    The relative error is at most 2⁻¹¹ for numbers down to a 10⁹th of the largest of their slice. nan stays nan, and
    infinity infinity.

    Returns:
        "shape"; "scale", one number per slice; "half", little-endian float16 in base64. value = half · scale.
    """
    numbers = values.detach().to("cpu", torch.float64).numpy()
    rows = numbers.reshape(len(numbers), -1)
    finite = np.where(np.isfinite(rows), np.abs(rows), 0.0)
    largest = finite.max(-1, initial=0.0)
    scale = np.where(largest > 0, largest / _LARGEST, 1.0)
    scale = np.array([float(f"{one:.9g}") for one in scale])  # what the page will read is what is divided by
    half = (rows / scale[:, None]).astype("<f2")
    return {
        "shape": list(numbers.shape),
        "scale": scale.tolist(),
        "half": base64.b64encode(half.tobytes()).decode("ascii"),
    }


def numbers_16(values: Tensor) -> str:
    """Whole numbers below 65536, in base64."""
    return base64.b64encode(values.cpu().numpy().astype("<u2").tobytes()).decode("ascii")
