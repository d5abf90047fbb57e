"""The norm of a value vector relative to its input's (EMNLP 2021, appendix C, Table 8). No corpus needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks.structure import Affine
from ..errors import UnsupportedArchitectureError
from ..options import Layers
from ..plan import chosen_blocks, reader_of
from ..storage.storable import Storable
from .engine.options import chosen, made
from .tables import frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ExpansionRates(Storable):
    """Expansion rates per layer.

    Attributes:
        layers: the layer numbers
        paper: [layer], the definition of the paper
        released: [layer], that of the authors' released code, which made the published numbers; nan where the width of
            all heads is not that of the stream, for which it is not defined
    """

    layers: tuple[int, ...]
    paper: np.ndarray
    released: np.ndarray

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer: paper, released."""
        return frame({"layer": self.layers, "paper": self.paper, "released": self.released})


def expansion_rate(model: nn.Module, *, layers: Layers = None) -> ExpansionRates:
    """E|f(x)| / E|x| for x ~ N(0, I), with f(x) = (x W_V + b_V) W_O + b_O, all heads taken together.

    As a linear map f~ of [x, 1] its rate is the root of the mean square of its singular values, |f~|_F / sqrt(d)
    (Kobayashi et al. 2021, appendix C). Here f~ = [[W_V W_O], [b_V W_O + b_O]]. The released code divides by
    sqrt(d + 1), and multiplies [[W_V, 0], [b_V, 1]] with [[W_O, b_O], [0, 1]], so that b_O is in the last column,
    not in the last row.

    In pre-norm models x is what the values are read from: the normalised stream.

    Args:
        model: a TransformerBridge, HookedTransformer or HookedEncoder
        layers: one layer, several, or None for all

    Returns:
        ExpansionRates: `.paper` and `.released`, [layer].

    Raises:
        UnsupportedArchitectureError: the values are no affine map of the stream that can be read.

    Example:
        >>> studies.expansion_rate(model).to_dataframe()                        # doctest: +SKIP
    """
    reader = reader_of(made(model))
    blocks, _ = chosen_blocks(reader, chosen(layers))
    paper, released = [], []
    for block in blocks:
        step = block.attention()[1]
        if step.gate is not None or step.inner_norm is not None or step.clip is not None:
            raise UnsupportedArchitectureError(
                f"layer {block.layer}: between values and output projection of {step.module} there is a gate, a norm "
                f"or a clamp, so that f is not affine and has no expansion rate. Leave the layer out: layers=[...]."
            )
        with torch.no_grad():
            value, value_bias = _double(reader.attention_values(step))
            out, out_bias = _double(reader.attention_output(step))
        merged, last_row = value @ out, value_bias @ out
        d = len(merged)
        paper.append(float(((merged**2).sum() + ((last_row + out_bias) ** 2).sum()).sqrt() / d**0.5))
        if out.shape != (d, d):
            released.append(float("nan"))
            continue
        last_column = torch.cat([value @ out_bias, value_bias @ out_bias[:, None] + 1])
        squares = (merged**2).sum() + (last_row**2).sum() + (last_column**2).sum()
        released.append(float(squares.sqrt() / (d + 1) ** 0.5))
    return ExpansionRates(tuple(block.layer for block in blocks), np.array(paper), np.array(released))


def _double(affine: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64, zeros for no bias."""
    weight = affine.weight.detach().double().cpu()
    return weight, weight.new_zeros(weight.shape[1]) if affine.bias is None else affine.bias.detach().double().cpu()
