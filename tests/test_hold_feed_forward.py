"""Held feed-forwards: every rule against the gradient of its definition, and against the feed-forward itself."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tl_norms.linear.hold import NormWeights, Unit, hold_feed_forward
from tl_norms.linear.operators import Projection, applied

RULES = ["ig", "half", "gate", "drop"]
D, M = 6, 10


def made(seed=0, *, gated=True, limit=None, up_offset=0.0, inner=False, routed=False, dtype=torch.float64, g=F.silu):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    up = Projection(random(D, M), random(M)) if gated else None
    norm = NormWeights(True, 1e-5, random(M), random(M)) if inner else None
    scale = torch.tensor([[0.5, 0.0, 2.0]], dtype=dtype) if routed else None
    unit = Unit(
        Projection(random(D, M), random(M)),
        up,
        Projection(random(M, D), random(D)),
        g,
        up_offset=up_offset,
        limit=limit,
        inner=norm,
        scale_out=scale,
    )
    return unit, random(1, 3, D)


def plain(unit, x):
    """The feed-forward, written down once more."""
    u = x @ unit.into.weight + unit.into.bias
    u = u if unit.limit is None else u.clamp(max=unit.limit)
    neurons = unit.activation(u)
    if unit.up is not None:
        w = x @ unit.up.weight + unit.up.bias
        w = w if unit.limit is None else w.clamp(-unit.limit, unit.limit)
        neurons = neurons * (w + unit.up_offset)
    if unit.inner is not None:
        neurons = F.layer_norm(neurons, neurons.shape[-1:], unit.inner.gain, unit.inner.beta, unit.inner.eps)
    y = neurons @ unit.out.weight + unit.out.bias
    return y if unit.scale_out is None else y * unit.scale_out[..., None]


def detached(unit, x, rule):
    """A function with the value's gradient that the rule means, everything that it holds detached; no inner norm."""
    u, w = x @ unit.into.weight + unit.into.bias, x @ unit.up.weight + unit.up.bias
    act, secant = unit.activation(u).detach(), (unit.activation(u) / u).detach()
    neurons = {
        "half": 0.5 * secant * u * w.detach() + 0.5 * act * w,
        "gate": act * w,
        "drop": (act * w).detach() + 0 * u,
    }[rule]
    return neurons @ unit.out.weight


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", ["player", "fixed"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gated": False},
        {"g": torch.sigmoid},
        {"g": F.softplus, "gated": False},
        {"up_offset": 1.0},
        {"limit": 1.0, "up_offset": 1.0},
        {"inner": True},
        {"routed": True},
        {"routed": True, "gated": False},
        {"dtype": torch.float32},
        {"dtype": torch.float32, "up_offset": 1.0, "g": torch.sigmoid},
    ],
    ids=lambda options: ", ".join(f"{name} {getattr(value, '__name__', value)}" for name, value in options.items()),
)
def test_the_held_map_gives_what_the_feed_forward_gives(rule, bias, options):
    unit, x = made(**options)
    held = hold_feed_forward(x, unit, bias, 0.3 * x.flip(1), rule)
    tolerance = 1e-12 if x.dtype == torch.float64 else 3e-6
    wanted = plain(unit, x)
    assert ((applied(held, x) - wanted).abs().max() / wanted.abs().max()) < tolerance


@pytest.mark.parametrize("rule", ["half", "gate", "drop"])
def test_a_rule_is_the_gradient_of_its_definition(rule):
    unit, x = made(1)
    held = hold_feed_forward(x, unit, "player", None, rule)
    jacobian = torch.autograd.functional.jacobian(lambda v: detached(unit, v, rule), x)
    z = torch.randn(4, 1, 3, D, dtype=torch.float64)
    wanted = torch.einsum("bqdcke,scke->sbqd", jacobian, z)
    torch.testing.assert_close(held(z), wanted, rtol=0, atol=1e-12)
    g = torch.randn(2, 1, 3, D, dtype=torch.float64)
    torch.testing.assert_close(held.transpose(g), torch.einsum("bqdcke,sbqd->scke", jacobian, g), rtol=0, atol=1e-12)


def test_integrated_gradients_are_the_mean_gradient_along_the_path():
    """Biases move with the input: the path scales both."""
    unit, x = made(2)
    held = hold_feed_forward(x, unit)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, weight = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    u, w = x @ unit.into.weight + unit.into.bias, x @ unit.up.weight + unit.up.bias
    gate, up = torch.zeros_like(u), torch.zeros_like(w)
    for node, share in zip(t, weight, strict=True):
        a, b = (node * u).requires_grad_(), (node * w).requires_grad_()
        parts = torch.autograd.grad((F.silu(a) * b).sum(), (a, b))
        gate, up = gate + share * parts[0], up + share * parts[1]
    torch.testing.assert_close(held.coefficients[0], gate, rtol=0, atol=1e-12)
    torch.testing.assert_close(held.coefficients[1], up, rtol=0, atol=1e-12)


def test_one_product_has_one_rule():
    unit, x = made(3, gated=False)
    held = [hold_feed_forward(x, unit, "player", None, rule) for rule in ("ig", "half", "gate")]
    for other in held[1:]:
        assert torch.equal(other.coefficients[0], held[0].coefficients[0])
        assert torch.equal(other.offset, held[0].offset)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{}, {"inner": True, "routed": True}, {"limit": 1.0}], ids=str)
def test_transpose_is_the_adjoint(rule, options):
    unit, x = made(4, **options)
    held = hold_feed_forward(x, unit, "player", None, rule)
    z, g = torch.randn(2, 5, 1, 3, D, dtype=torch.float64)
    torch.testing.assert_close((held(z) * g).sum(), (z * held.transpose(g)).sum(), rtol=0, atol=1e-10)


def test_dropped_feed_forwards_pass_nothing():
    unit, x = made(5)
    held = hold_feed_forward(x, unit, "player", None, "drop")
    assert not held(x).any() and not held.transpose(x).any()
    torch.testing.assert_close(held.offset, plain(unit, x), rtol=0, atol=1e-12)
