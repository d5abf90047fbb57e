"""Coefficients of paths that begin at zero, in float32, from piecewise quadratics: an elementwise lookup.

A path from zero leaves one number per neuron, so that both coefficients of `integrated` are functions of u alone:

    slope(u) = (g(u) - g(0)) / u          ramp(u) = int_0^1 t g'(t u) dt = (g(u) - G(u) / u) / u
    gate = c slope + w ramp               up = g(u) - u ramp                for the unit g(u) (w + c)

The slopes of most activations in use are known in closed form. All else is sampled in float64 from the activation
itself, so any activation will do, and interpolated on panels of width 1/32: 1e-7 for the activations in use, whose
kinks lie on edges of panels. Every table is compared with its function between the nodes and kept for as long as the
activation computes the same; one that it does not follow, float64 and what lies beyond the table go the long way of
`integrated`. u gate + w up = g(u) (w + c) - g(0) c whatever the table's error: completeness is structural.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import integrated
from .integrated import Activation
from .known import known
from .pieces import pieces

_PER_UNIT = 32  # panels; a power of two: a position on its panel is exact
_REACH = 16  # beyond this the activations in use are polynomials to float32, and few neurons are there
_NEAR = 1  # here the quotient (g(u) - g(0)) / u would cancel
_COARSE = 0.5  # the antiderivative: panels of this width, this many nodes
_NODES = 16
_TOLERANCE = 2e-7


def slope_from_zero(g: Activation, step: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """Mean slope of g from 0 to `step`; g'(0) where step = 0. In the precision of `step`."""
    if step.dtype == torch.float64:
        return integrated.slope(g, torch.zeros_like(step), step)
    function = known(g, step.device)
    found = torch.empty_like(step, memory_format=torch.contiguous_format)
    if function.slope is not None:
        for u, into in zip(_pieces(step), _pieces(found), strict=True):
            function.slope(u, into)
        return found
    table = function.remembered("slopes", lambda: _table(_slopes(g, step.device)))
    if table is None:
        return integrated.slope(g, torch.zeros_like(step).double(), step.double()).to(step.dtype)
    begin = g(step.new_zeros(()))
    for u, into in zip(_pieces(step), _pieces(found), strict=True):
        near = u.abs() < _NEAR
        torch.where(near, _look_up(table, u), (g(u) - begin) / u.masked_fill(near, 1.0), out=into)
        into.masked_fill_(u == 0, function.at_zero)
    return found


def gated_from_zero(
    g: Activation,
    step: Float[Tensor, "*b m"],
    up_step: Float[Tensor, "*b m"],
    up_start: float = 0.0,
    *,
    in_place: bool = False,
) -> tuple[Float[Tensor, "*b m"], Float[Tensor, "*b m"]]:
    """The coefficients (gate, up) of g(u) w on the path from (0, up_start) to (step, up_start + up_step).

    `in_place`: the steps are not needed any more; the coefficients may take their memory.
    """
    function = None if step.dtype == torch.float64 else known(g, step.device)
    table = None if function is None else function.remembered("ramps", lambda: _table(_ramps(g, step.device)))
    if function is None or table is None:
        wide, up_wide = step.double(), up_step.double()
        pair = integrated.gated(g, torch.zeros_like(wide), wide, torch.full_like(wide, up_start), up_wide)
        return pair[0].to(step.dtype), pair[1].to(step.dtype)
    middle = function.at_zero / 2
    kink = function.remembered("kink", lambda: abs(float(table[0, table.shape[1] // 2]) - middle) > _TOLERANCE)
    if in_place and not up_start and step.is_contiguous() and up_step.is_contiguous():
        gate, up = up_step, step
    else:
        gate, up = (torch.empty_like(step, memory_format=torch.contiguous_format) for _ in range(2))
    for u, w, to_gate, to_up in zip(*map(_pieces, (step, up_step, gate, up)), strict=True):
        least, most = torch.aminmax(u)
        outside = not bool(torch.maximum(-least, most) < _REACH)
        ramp = _look_up(table, u, outside)
        if kink:
            ramp.masked_fill_(u == 0, middle)
        if outside:
            beyond = u.abs() >= _REACH
            far = u[beyond].double()
            wide = integrated.gated(g, torch.zeros_like(far), far, torch.zeros_like(far), torch.ones_like(far))
            ramp[beyond] = wide[0].to(u.dtype)
        torch.addcmul(g(u), u, ramp, value=-1, out=to_up)
        torch.mul(w, ramp, out=to_gate)
    return (gate.add_(slope_from_zero(g, step), alpha=up_start) if up_start else gate), up


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """All numbers of a tensor in a row, on a processor as many at a time as its cache holds with all that is made."""
    flat = x.reshape(-1)
    return flat.split(min(max(1, len(flat)), pieces(x.device).looked_up))


def _look_up(table: Float[Tensor, "3 panel"], x: Float[Tensor, " x"], outside: bool = True) -> Float[Tensor, " x"]:
    """The quadratic of the panel of every x; outside, if there are such, those of the outermost panels."""
    scaled = x * _PER_UNIT
    left = scaled.floor()
    half = table.shape[1] // 2
    panel = (left.clamp(-half, half - 1) if outside else left).to(torch.int32).add_(half)
    local = scaled.sub_(left)
    value = table[2].index_select(0, panel).mul_(local).add_(table[1].index_select(0, panel))
    return value.mul_(local).add_(table[0].index_select(0, panel))


def _table(samples: Float[Tensor, "panel 4"]) -> Float[Tensor, "3 panel"] | None:
    """Quadratics on 0..1 of every panel, float32; None if they miss the fourth sample of a panel."""
    _, to_coefficients, check = (matrix.to(samples.device) for matrix in _quadratic())
    coefficients = samples[:, :3] @ to_coefficients.T
    error = (coefficients @ check - samples[:, 3]).abs() / samples[:, 3].abs().clamp_min(1)
    return coefficients.T.to(torch.float32).contiguous() if bool((error < _TOLERANCE).all()) else None


def _points(reach: int, device: torch.device) -> Float[Tensor, "panel 4"]:
    """Where panels are sampled; the last point of each is the one that checks."""
    left = torch.arange(-reach * _PER_UNIT, reach * _PER_UNIT, dtype=torch.float64, device=device)
    return (left[:, None] + _quadratic()[0].to(device)) / _PER_UNIT


def _slopes(g: Activation, device: torch.device) -> Float[Tensor, "panel 4"]:
    x = _points(_NEAR, device)
    return (g(x) - g(x.new_zeros(()))) / x


def _ramps(g: Activation, device: torch.device) -> Float[Tensor, "panel 4"]:
    x = _points(_REACH, device)
    nodes, integrate = (matrix.to(device) for matrix in _antiderivative())
    left = torch.arange(int(2 * _REACH / _COARSE), dtype=torch.float64, device=device) * _COARSE - _REACH
    areas = g(left[:, None] + _COARSE * nodes) @ integrate.T  # from a coarse panel's left edge; last: all of it
    before = areas[:, -1].cumsum(0) - areas[:, -1]
    before = before - before[len(left) // 2]  # zero at zero
    area = (areas[:, :-1] + before[:, None]).reshape(x.shape)
    return (g(x) - area / x) / x


@lru_cache
def _quadratic() -> tuple[Tensor, Tensor, Tensor]:
    """Four points on 0..1, the matrix from the first three's values to coefficients, and the powers of the fourth."""
    nodes = np.append((1 - np.cos((2 * np.arange(3) + 1) * np.pi / 6)) / 2, 0.75)
    powers = np.vander(nodes, 3, increasing=True)
    return torch.from_numpy(nodes), torch.from_numpy(np.linalg.inv(powers[:3])), torch.from_numpy(powers[3])


@lru_cache
def _antiderivative() -> tuple[Tensor, Tensor]:
    """Nodes on 0..1 of a coarse panel; the matrix from g there to its integral up to every point of the fine panels."""
    chebyshev = np.polynomial.chebyshev
    nodes = np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES))
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, _NODES - 1))
    integrate = chebyshev.chebint(np.eye(_NODES), lbnd=-1, axis=0) @ to_coefficients * (_COARSE / 2)
    per_panel = int(_COARSE * _PER_UNIT)
    fine = ((np.arange(per_panel)[:, None] + _quadratic()[0].numpy()) / per_panel).ravel()
    ends = np.append(fine, 1.0) * 2 - 1
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(chebyshev.chebvander(ends, _NODES) @ integrate)
