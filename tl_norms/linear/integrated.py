"""Integrated gradients of an activation along a straight path, in closed form.

For y = g(u) on the path u(t) = a + t d, t in [0, 1], a source that moves u by z receives z * slope, with

    slope  = int_0^1 g'(a + t d) dt   = (g(a + d) - g(a)) / d

and for a gated unit y = g(u) w, with w(t) = b + t e, a source that moves (u, w) by (z, x) receives z * gate + x * up:

    up     = int_0^1 g(a + t d) dt                = (G(a + d) - G(a)) / d,  G an antiderivative of g
    gate   = int_0^1 g'(a + t d) w(t) dt          = b * slope + e * (g(a + d) - up) / d

so that d * gate + e * up + g(a) b = g(a + d) (b + e) whatever the error of `up`: completeness is structural. Where
|d| is small the quotients would cancel; there the integrals of g' are taken by Gauss-Legendre on both sides of u = 0
(the kink of ReLU-like activations), if they add up: another kink in between is left to the quotients. Everything here
is float64, elementwise, O(n d_mlp).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .pieces import pieces

Activation = Callable[[Tensor], Tensor]

_SMALL = 0.05  # below this |d| the quotients give way to Gauss-Legendre: 10 points leave an error near 1e-15
_PANEL, _REACH, _NODES = 0.5, 48.0, 16  # the antiderivative: panels of this width on [-reach, reach], this degree


def slope(g: Activation, start: Tensor, step: Tensor) -> Tensor:
    """Mean slope of g from `start` to `start + step` (float64); g'(start) where step = 0."""
    rise = g(start + step) - g(start)
    small, mean, _ = _of_small_steps(g, start, step, rise)
    found = rise / torch.where(step == 0, torch.ones_like(step), step)
    found[small] = mean
    return found


def gated(g: Activation, start: Tensor, step: Tensor, up_start: Tensor, up_step: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients (gate, up) of a gated unit (float64)."""
    safe = torch.where(step == 0, torch.ones_like(step), step)
    end = g(start + step)
    area = antiderivative(g, start + step)
    if bool(start.any()):  # it is zero at zero
        area = area - antiderivative(g, start)
    rise = end - g(start)
    small, of_small_mean, of_small_ramp = _of_small_steps(g, start, step, rise)
    mean, ramp = rise / safe, (end - area / safe) / safe  # int g'(a + t d) dt, int t g'(a + t d) dt
    mean[small], ramp[small] = of_small_mean, of_small_ramp
    up = end - step * ramp
    return up_start * mean + up_step * ramp, up


def clipped_gated(
    g: Activation, start: Tensor, step: Tensor, up_start: Tensor, up_step: Tensor, *, limit: float, offset: float
) -> tuple[Tensor, Tensor]:
    """The coefficients (gate, up) of y = g(min(u, limit)) (clip(w, -limit, limit) + offset), float64.

    The path is cut where u or w meets a limit; between the cuts each is either free or constant.
    """
    cuts = [_crossing(start, step, limit), _crossing(up_start, up_step, limit), _crossing(up_start, up_step, -limit)]
    edges = torch.stack([torch.zeros_like(start), *torch.stack(cuts).sort(dim=0).values, torch.ones_like(start)])
    gate, up = torch.zeros_like(start), torch.zeros_like(start)
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        width, middle = right - left, (left + right) / 2
        free = start + middle * step < limit
        up_free = (up_start + middle * up_step).abs() < limit
        here = torch.where(free, start + left * step, torch.full_like(start, limit))
        there = (up_start + left * up_step).clamp(-limit, limit) + offset
        part, up_part = gated(g, here, width * step * free, there, width * up_step * up_free)
        gate += part * width * free
        up += up_part * width * up_free
    return gate, up


def _crossing(start: Tensor, step: Tensor, level: float) -> Tensor:
    """Where on the path start + t step meets a level, 0..1."""
    safe = torch.where(step == 0, torch.ones_like(step), step)
    return torch.where(step == 0, torch.zeros_like(step), (level - start) / safe).clamp(0, 1)


def derivative(g: Activation, x: Tensor) -> Tensor:
    """g'(x) by autograd, also under no_grad and inference_mode."""
    with torch.inference_mode(False), torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(g(point).sum(), point)
    return gradient


def _of_small_steps(g: Activation, start: Tensor, step: Tensor, rise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where |step| is small, and the two integrals there, but where g has a kink in between that the nodes miss."""
    small = step.abs() < _SMALL
    if not small.any():
        return small, step[small], step[small]
    plain, ramp = _gauss(g, start[small], step[small])
    smooth = (plain * step[small] - rise[small]).abs() <= 1e-12 * (1 + g(start[small]).abs())
    small[small.clone()] = smooth
    return small, plain[smooth], ramp[smooth]


def _gauss(g: Activation, start: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """int_0^1 g'(a + t d) dt and int_0^1 t g'(a + t d) dt, split where a + t d = 0."""
    split = torch.where(step == 0, torch.zeros_like(step), -start / torch.where(step == 0, torch.ones_like(step), step))
    split = split.clamp(0, 1)
    nodes, weights = (start.new_tensor(one)[:, None] for one in _legendre(10))
    plain, ramp = torch.empty_like(step), torch.empty_like(step)
    at_once = pieces(start.device).nodes // (2 * len(nodes))
    parts = (one.split(at_once) for one in (start, step, split, plain, ramp))
    for a, d, middle, to_plain, to_ramp in zip(
        *parts, strict=True
    ):  # one derivative for all nodes on both sides: [node number]
        t = torch.cat([middle * nodes, middle + (1 - middle) * nodes])
        width = torch.cat([middle * weights, (1 - middle) * weights])
        value = derivative(g, a + t * d) * width
        to_plain.copy_(value.sum(0))
        to_ramp.copy_((t * value).sum(0))
    return plain, ramp


def antiderivative(g: Activation, x: Tensor) -> Tensor:
    """G(x) = int_0^x g(s) ds, from a piecewise polynomial made from g itself (1e-15 for the activations in use).

    Beyond the last panel the integral goes on by Gauss-Legendre: there activations are polynomials.
    """
    n_panels = int(2 * _REACH / _PANEL)
    edges = torch.arange(n_panels + 1, dtype=torch.float64, device=x.device) * _PANEL - _REACH
    coefficients = _panel_coefficients(g, edges[:-1])  # [degree panel]
    inside = x.clamp(-_REACH, _REACH)
    panel = ((inside + _REACH) / _PANEL).long().clamp(0, n_panels - 1)
    local = (inside - edges[panel]) / _PANEL * 2 - 1  # -1..1 on the panel
    value, previous = torch.zeros_like(x), torch.zeros_like(x)  # Clenshaw's recurrence: stable at any degree
    for degree in range(len(coefficients) - 1, 0, -1):
        value, previous = coefficients[degree][panel] + 2 * local * value - previous, value
    value = coefficients[0][panel] + local * value - previous
    outside = (x != inside).nonzero(as_tuple=True)
    if len(outside[0]):
        start, step = inside[outside], (x - inside)[outside]
        for node, weight in zip(*_legendre(32), strict=True):
            value[outside] += weight * step * g(start + node * step)
    return value


def _panel_coefficients(g: Activation, left: Tensor) -> Tensor:
    """Chebyshev coefficients of G on every panel: [degree panel]."""
    nodes, integrate = (matrix.to(left.device) for matrix in _chebyshev(_NODES))
    samples = g(left[:, None] + _PANEL / 2 * (nodes + 1))  # [panel node]
    coefficients = samples @ integrate.T * (_PANEL / 2)  # zero at the left edge
    area = coefficients.sum(1)  # the value at the right edge: every T_k(1) is 1
    before = torch.cat([area.new_zeros(1), area.cumsum(0)[:-1]])
    coefficients[:, 0] += before - before[len(left) // 2]  # G is 0 where the panel that begins at 0 does
    return coefficients.T


@lru_cache
def _legendre(points: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


@lru_cache
def _chebyshev(points: int) -> tuple[Tensor, Tensor]:
    """Nodes on -1..1, and the matrix from values there to the coefficients of the integral from -1."""
    nodes = np.cos((2 * np.arange(points) + 1) * np.pi / (2 * points))
    to_coefficients = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, points - 1))
    integrate = np.polynomial.chebyshev.chebint(np.eye(points), lbnd=-1, axis=0)
    return torch.from_numpy(nodes), torch.from_numpy(integrate @ to_coefficients)
