"""What the way from a stream to an attention's logits is, as names; see `queries` for how it is found."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .modules import affine, unwrap
from .structure import Affine, Attention, Reader
from .values import Multiplied, Normed, Projected, find


@dataclass(frozen=True)
class Weighed:
    """W_Q or W_K, or a part of it.

    Attributes:
        module: its module's path
        letter: where one module holds both
        heads, columns: only these columns, first and last, of each of so many heads
        padded: heads that share them (if the module has one), and zeros before and behind them in each
    """

    module: str
    letter: str = ""
    heads: int | None = None
    columns: tuple[int, int] | None = None
    padded: tuple[int, int, int] | None = None


SideStep = Normed | Multiplied | Projected | Weighed


@dataclass(frozen=True)
class LogitSide:
    """From a stream to the queries or the keys.

    Attributes:
        layer: the layer whose stream is read; None: what leaves the encoder
        shared: another way, added to that of `steps`: in latent attention, the columns that are turned
        norm: on the vectors of every head, or on all heads side by side (`whole`); `behind` the rotary embedding
    """

    layer: int | None
    steps: tuple[SideStep, ...]
    shared: tuple[SideStep, ...] = ()
    norm: Normed | None = None
    whole: bool = False
    behind: bool = False


@dataclass(frozen=True)
class LogitPath:
    """The logits of one attention: softcap(scale <q, k>) + factor * what is added by position.

    Attributes:
        turned: how the rotary embedding turns, see `position.turning`; empty for none
        last: it is the last columns of every head that it turns
        tuned: how queries are scaled by their position, see `position.Around`; empty for not at all
        added: what is added by position, see `position.Around`; empty for nothing
        sink: the attribute that holds the logits of a key without a value
    """

    queries: LogitSide
    keys: LogitSide
    turned: str = ""
    last: bool = False
    tuned: str = ""
    scale: float = 1.0
    cap: float | None = None
    added: str = ""
    factor: float = 1.0
    sink: str = ""


def weights_in(reader: Reader, step: Weighed) -> Affine:
    """Weights [in out] of W_Q or W_K as they are now; heads one after the other, grouped ones once."""
    module = find(reader.model, step.module)
    if step.letter:
        weight = getattr(module, f"_W_{step.letter}", None)
        weight = getattr(module, f"W_{step.letter}") if weight is None else weight  # [head d e]
        bias = getattr(module, f"_b_{step.letter}", None)
        bias = getattr(module, f"b_{step.letter}") if bias is None else bias
        return Affine(weight.transpose(0, 1).flatten(1), bias.flatten())
    whole = affine(module, step.module)
    if step.heads is None or step.columns is None:
        return whole
    first, last = step.columns

    def chosen(rows: Tensor) -> Tensor:
        rows = rows.unflatten(-1, (step.heads or 1, -1))[..., first:last]
        if step.padded is not None:
            heads, before, behind = step.padded
            rows = nn.functional.pad(rows.expand(*rows.shape[:-2], heads, -1), (before, behind))
        return rows.flatten(-2)

    return Affine(chosen(whole.weight), None if whole.bias is None else chosen(whole.bias))


def refused(reader: Reader, attention: Attention, why: str) -> UnsupportedArchitectureError:
    kind = type(unwrap(find(reader.model, attention.module))).__name__
    return UnsupportedArchitectureError(
        f"{attention.module} ({kind}): {why}, so its logits cannot be shared out. What it moved works: "
        f'attention="held".'
    )
