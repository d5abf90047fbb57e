"""How much longer than its input a value vector is (EMNLP 2021, appendix C, Table 8). No corpus needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from ..options import Layers
from ..plan import chosen_blocks, reader_of
from .frames import frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ExpansionRates:
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
        UnsupportedArchitectureError: the values are no affine map of the stream's width that can be read.

    Example:
        >>> studies.expansion_rate(model).to_dataframe()                        # doctest: +SKIP
    """
    reader = reader_of(model)
    blocks, _ = chosen_blocks(reader, layers)
    paper, released = [], []
    for block in blocks:
        step = block.attention()[1]
        if step.gate is not None or step.inner_norm is not None or step.clip is not None:
            raise UnsupportedArchitectureError(
                f"layer {block.layer}: between values and output projection of {step.module} there is a gate, a norm "
                f"or a clamp, so that f is not affine and has no expansion rate. Leave the layer out: layers=[...]."
            )
        with torch.no_grad():
            output = reader.attention_output(step)
            out, out_bias = _double(output.weight), _double(output.bias, output.weight.shape[1])
            value, value_bias = _values(model.get_submodule(step.module), step.module, len(out))
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


def _values(attention: nn.Module, name: str, width: int) -> tuple[Tensor, Tensor]:
    """W_V [d_model, width of all heads], b_V [width], keys and values of grouped heads repeated."""
    try:
        weight, bias = attention.W_V, getattr(attention, "b_V", None)
    except AttributeError as error:
        raise UnsupportedArchitectureError(f"{name} has no W_V that can be read: {error}.") from error
    if not isinstance(weight, Tensor) or weight.ndim != 3 or width % weight.shape[-1]:
        shape = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise UnsupportedArchitectureError(f"{name}.W_V is {shape}; expected [head d_model d_head].")
    n_heads, _, d_head = weight.shape
    repeats = width // d_head // n_heads
    merged = _double(weight).repeat_interleave(repeats, 0).permute(1, 0, 2).flatten(1)
    if bias is None:
        return merged, merged.new_zeros(width)
    return merged, _double(bias).reshape(n_heads, d_head).repeat_interleave(repeats, 0).flatten()


def _double(value: Tensor | None, size: int = 0) -> Tensor:
    return torch.zeros(size, dtype=torch.float64) if value is None else value.detach().double().cpu()
