"""The closed-form integrated gradients against numeric integrals of derivatives, and against captum."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tl_norms.linear import integrated, known, tables

ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "squared_relu": lambda x: F.relu(x).square(),
    "elu": F.elu,
    "softplus": F.softplus,  # g(0) = log 2
    "sigmoid": torch.sigmoid,  # g(0) = 1/2
    "mish": F.mish,
    "hardswish": F.hardswish,  # kinks at -3 and 3
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "identity": lambda x: x * 1.0,
}
CAPTUM = 1e-7  # its step sizes are float32
SIZES = [0.0, 1e-12, 1e-7, 1e-4, 0.0101, 0.0499, 0.0501, 0.3, 1.7, 2.995, 3.02, 8.0, 47.9, 48.1, 300.0, 1e4]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
BREAKS = np.unique(np.concatenate([np.linspace(-50, 50, 401), [-3, 0, 3, 20]]))  # the kinks, and where g bends


SMOOTH_FROM_ZERO = [name for name in ACTIVATIONS if name != "hardswish"]  # captum's nodes do not know where kinks are


@pytest.fixture(params=ACTIVATIONS)
def g(request):
    return ACTIVATIONS[request.param]


def reference(g, start, step, up_start, up_step):
    """int g'(u(t)) dt, int g'(u(t)) w(t) dt and int g(u(t)) dt, by Gauss-Legendre between all kinks and bends.

    Derivatives are torch's own, along the path.
    """
    low, high = sorted((start, start + step))
    inner = BREAKS[(BREAKS > low) & (BREAKS < high)]
    times = np.sort((inner - start) / step) if len(inner) else np.empty(0)
    edges = np.concatenate([[0.0], times.clip(0, 1), [1.0]])
    width = np.diff(edges)[:, None]
    t = torch.from_numpy((edges[:-1, None] + width * (NODES + 1) / 2).ravel())
    weight = torch.from_numpy((width * WEIGHTS / 2).ravel())
    value, product = torch.func.vjp(g, start + t * step)
    (slope,) = product(torch.ones_like(t))
    up = up_start + t * up_step
    return [float((weight * part).sum()) for part in (slope, slope * up, value)]


def paths(starts):
    """All steps in both directions from every start, with gated partners."""
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    grid = torch.meshgrid(torch.cat([sizes, -sizes]), torch.tensor(starts, dtype=torch.float64), indexing="ij")
    step, start = (axis.ravel() for axis in grid)
    generator = torch.Generator().manual_seed(0)
    up_start, up_step = torch.randn(2, len(step), generator=generator, dtype=torch.float64)
    return start, step, up_start, up_step


def assert_close(found, wanted, size=1.0, tolerance=1e-10):
    """Agreement relative to the larger of the value and `size`: 60.05 - 60 has lost two digits before anyone looks."""
    assert found.isfinite().all()
    wanted = torch.tensor(wanted, dtype=torch.float64)
    error = (found - wanted).abs() / wanted.abs().clamp_min(1).maximum(torch.as_tensor(size, dtype=torch.float64))
    assert error.max() < tolerance, f"{float(error.max()):.1e} at path {int(error.argmax())}"


def check(g, starts):
    start, step, up_start, up_step = paths(starts)
    columns = [column.tolist() for column in (start, step, up_start, up_step)]
    slope, gate, up = zip(*(reference(g, *path) for path in zip(*columns, strict=True)), strict=True)
    assert_close(integrated.slope(g, start, step), slope, start.abs())
    found_gate, found_up = integrated.gated(g, start, step, up_start, up_step)
    assert_close(found_gate, gate, start.abs())
    assert_close(found_up, up, start.abs())


# "player" starts at zero, "fixed" at the bias, which may lie anywhere: left, right and just beside the kink at zero
@pytest.mark.parametrize("starts", [[0.0], [-4.0, -1.3, -1e-3, 1e-9, 0.02, 0.7, 60.0]], ids=["player", "fixed"])
def test_coefficients_against_numeric_integral(g, starts):
    check(g, starts)


@pytest.mark.parametrize("name, starts", [("hardswish", [-2.98, 2.99]), ("relu6", [5.99])])
def test_small_steps_across_a_kink_away_from_zero(name, starts):
    check(ACTIVATIONS.get(name, F.relu6), starts)


def test_zero_step_is_the_derivative(g):
    points = torch.tensor([-3.5, -0.2, 0.3, 4.0], dtype=torch.float64)
    zero, ones = torch.zeros_like(points), torch.ones_like(points)
    point = points.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(g(point).sum(), point)
    assert_close(integrated.slope(g, points, zero), derivative.tolist(), tolerance=1e-14)
    gate, up = integrated.gated(g, points, zero, 2 * ones, 3 * ones)  # the partner goes from 2 to 5: 3.5 on average
    assert_close(gate, (3.5 * derivative).tolist(), tolerance=1e-14)
    assert_close(up, g(points).tolist(), tolerance=1e-14)


def test_shares_add_up_to_rounding(g):
    """Completeness is structural: it does not wait for the antiderivative to be exact."""
    start, step, up_start, up_step = paths([0.0, -1.3, 0.7, 60.0])
    end = start + step
    gain = g(end) - g(start)
    assert_close(integrated.slope(g, start, step) * step, gain.tolist(), start.abs(), tolerance=1e-14)
    gate, up = integrated.gated(g, start, step, up_start, up_step)
    wanted = g(end) * (up_start + up_step) - g(start) * up_start
    assert_close(gate * step + up * up_step, wanted.tolist(), start.abs(), tolerance=2e-14)


def test_coefficients_under_inference_mode(g):
    start, step, *partner = paths([0.0])
    outside = integrated.gated(g, start, step, *partner)
    with torch.inference_mode():
        inside = integrated.gated(g, *paths([0.0]))
    for left, right in zip(outside, inside, strict=True):
        assert torch.equal(left, right.clone())


def float32_paths():
    """Steps over the whole range, dense where the table is, with a partner that comes from 1."""
    ends = torch.cat([torch.linspace(-17, 17, 501), torch.tensor(SIZES), -torch.tensor(SIZES)])
    return ends, torch.randn(len(ends), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*ACTIVATIONS, "relu6"])
def test_float32_coefficients_against_numeric_integral(name):
    g = ACTIVATIONS.get(name, F.relu6)
    step, up_step = float32_paths()
    columns = zip(step.tolist(), up_step.tolist(), strict=True)
    slope, gate, up = zip(*(reference(g, 0.0, d, 1.0, e) for d, e in columns), strict=True)
    found_gate, found_up = tables.gated_from_zero(g, step, up_step, 1.0)
    found_slope = tables.slope_from_zero(g, step)
    size = torch.tensor(slope).abs()  # a gate's two parts may cancel
    for found, wanted in ((found_slope, slope), (found_gate, gate), (found_up, up)):
        assert found.dtype == torch.float32
        assert_close(found.double(), wanted, size, tolerance=1e-6)


def test_float32_shares_add_up_to_rounding(g):
    step, up_step = float32_paths()
    gate, up = tables.gated_from_zero(g, step, up_step, 1.0)
    wanted = g(step) * (up_step + 1) - g(torch.zeros(()))
    found = gate.double() * step + up.double() * up_step
    assert_close(found, wanted.tolist(), step.abs().double(), tolerance=1e-6)


def test_completeness_is_structural(g, monkeypatch):
    """Even with a wrong table."""
    exact = tables._ramps
    monkeypatch.setattr(known, "_functions", {})
    monkeypatch.setattr(tables, "_ramps", lambda *args: 1.01 * exact(*args) + 0.01)
    step, up_step = float32_paths()
    keep = step.abs() < 16
    step, up_step = step[keep], up_step[keep]
    gate, up = tables.gated_from_zero(g, step, up_step)
    right, _ = integrated.gated(g, *(x.double() for x in (0 * step, step, 0 * step, up_step)))
    assert (gate - right).abs().max() > 1e-3
    assert_close(gate.double() * step + up.double() * up_step, (g(step) * up_step).tolist(), step.abs().double(), 1e-6)


def test_float64_from_zero_takes_the_exact_way(g):
    start, step, up_start, up_step = paths([0.0])
    for found, wanted in zip(
        tables.gated_from_zero(g, step, up_step), integrated.gated(g, start, step, 0 * start, up_step), strict=True
    ):
        assert torch.equal(found, wanted)
    assert torch.equal(tables.slope_from_zero(g, step), integrated.slope(g, start, step))


SLOPES = {"relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "squared_relu"}


def test_activations_are_recognised_by_what_they_compute(g, request):
    """Those with a slope in closed form, and no other that comes close."""
    found = known.known(g, torch.device("cpu"))
    assert (found.slope is not None) == (request.node.callspec.params["g"] in SLOPES)
    assert found is known.known(lambda x: g(x), torch.device("cpu"))
    assert found is not known.known(lambda x: g(x) * (1 + 1e-9), torch.device("cpu"))
    for near in (lambda x: g(x.clamp(-40, 40)), lambda x: g(x) + 1e-9, lambda x: g(x) + 1e-9 * x.square()):
        assert known.known(near, torch.device("cpu")).slope is None


def test_an_activation_whose_parameter_changes_is_another_one():
    u, parameter = torch.linspace(-2, 2, 9), torch.tensor(0.5)

    def g(x):
        return torch.where(x > 0, x, x * parameter.to(x))

    before = tables.slope_from_zero(g, u), tables.gated_from_zero(g, u, u + 1)[1]
    parameter.mul_(3)
    after = tables.slope_from_zero(g, u), tables.gated_from_zero(g, u, u + 1)[1]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other[u < 0], 3 * one[u < 0])
        torch.testing.assert_close(other[u > 0], one[u > 0])


def test_an_activation_that_the_table_misses_takes_the_exact_way():
    """A kink inside a panel, and a wave shorter than one: their integrals in closed form."""
    step = torch.linspace(-3, 3, 101)
    slope = torch.where(step > 0.1, step - 0.1, 0.0) / step.masked_fill(step == 0, 1)
    torch.testing.assert_close(tables.slope_from_zero(lambda x: F.relu(x - 0.1), step), slope, rtol=0, atol=1e-6)
    wave = tables.gated_from_zero(lambda x: torch.sin(20 * x), step, torch.ones_like(step))[1]
    wanted = ((1 - torch.cos(20 * step.double())) / (20 * step.double().masked_fill(step == 0, 1))).float()
    torch.testing.assert_close(wave, wanted, rtol=0, atol=1e-6)


def test_clipped_unit_against_numeric_integral():
    """GPT-OSS: both inputs are clipped, so that the path has kinks where either meets its limit."""
    g, limit, offset = ACTIVATIONS["quick_gelu"], 1.5, 1.0
    generator = torch.Generator().manual_seed(5)
    start, step, up_start, up_step = 3 * torch.randn(4, 60, generator=generator, dtype=torch.float64)

    def unit(u, w):
        return g(u.clamp(max=limit)) * (w.clamp(-limit, limit) + offset)

    gates, ups = [], []
    for a, d, b, e in zip(*(column.tolist() for column in (start, step, up_start, up_step)), strict=True):
        crossings = [(limit - a) / d, (limit - b) / e, (-limit - b) / e]
        edges = np.unique(np.clip(np.concatenate([crossings, np.linspace(0, 1, 9)]), 0, 1))
        width = np.diff(edges)[:, None]
        t = torch.from_numpy((edges[:-1, None] + width * (NODES + 1) / 2).ravel())
        _, product = torch.func.vjp(unit, a + t * d, b + t * e)
        weight = torch.from_numpy((width * WEIGHTS / 2).ravel())
        gate, up = (float((weight * part).sum()) for part in product(torch.ones_like(t)))
        gates.append(gate)
        ups.append(up)
    gate, up = integrated.clipped_gated(g, start, step, up_start, up_step, limit=limit, offset=offset)
    assert_close(gate, gates)
    assert_close(up, ups)


def captum_attributions(forward, inputs, **options):
    attr = pytest.importorskip("captum.attr")
    return attr.IntegratedGradients(forward).attribute(inputs, n_steps=400, method="gausslegendre", **options)


def sources(seed, n_rows=6, n_sources=5):
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n_rows, n_sources, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SMOOTH_FROM_ZERO)
def test_plain_neuron_against_captum(name):
    """Player: the bias is one of the features, and all start at zero."""
    g, z = ACTIVATIONS[name], sources(0)
    wanted = captum_attributions(lambda x: g(x.sum(1)), z)
    u = z.sum(1)
    found = z * integrated.slope(g, torch.zeros_like(u), u)[:, None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=CAPTUM)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu", "silu", "softplus", "sigmoid", "mish", "tanh"])
def test_neuron_with_fixed_bias_against_captum(name):
    """Fixed: the bias is no feature, and the path starts at g(bias)."""
    g, z, bias = ACTIVATIONS[name], sources(1), sources(2)[:, 0]
    wanted = captum_attributions(lambda x, b: g(x.sum(1) + b), z, additional_forward_args=(bias,))
    found = z * integrated.slope(g, bias, z.sum(1))[:, None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=CAPTUM)


@pytest.mark.parametrize("name", SMOOTH_FROM_ZERO)
def test_gated_neuron_against_captum(name):
    g, z, x = ACTIVATIONS[name], sources(3), sources(4)
    wanted_z, wanted_x = captum_attributions(lambda a, b: g(a.sum(1)) * b.sum(1), (z, x))
    u, w = z.sum(1), x.sum(1)
    gate, up = integrated.gated(g, torch.zeros_like(u), u, torch.zeros_like(w), w)
    torch.testing.assert_close(z * gate[:, None], wanted_z, rtol=0, atol=CAPTUM)
    torch.testing.assert_close(x * up[:, None], wanted_x, rtol=0, atol=CAPTUM)
