"""Measures of source vectors against their formulas, written down plainly in float64."""

import pytest
import torch

from tl_norms.errors import UnknownOptionError
from tl_norms.linear.measure.measures import MEASURES, Onto, measure_of, mixture_onto, mixture_toward

N_SOURCES, B, Q, D = 5, 2, 4, 8


@pytest.fixture
def parts():
    """Vectors of some sources and a remainder, which add up to the total."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(N_SOURCES, B, Q, D, generator=generator, dtype=torch.float64)
    rest = torch.randn(B, Q, D, generator=generator, dtype=torch.float64)
    return vectors, rest, vectors.sum(0) + rest


def plain(name, v, y):
    """One vector, coordinate by coordinate."""
    v, y = v.tolist(), y.tolist()
    if name == "l2":
        return sum(a * a for a in v) ** 0.5
    if name == "l1":
        return sum(abs(a) for a in v)
    if name == "alti":
        return max(0.0, sum(abs(b) for b in y) - sum(abs(b - a) for a, b in zip(v, y, strict=True)))
    return sum(a * b for a, b in zip(v, y, strict=True)) / sum(b * b for b in y)


@pytest.mark.parametrize("name", MEASURES)
def test_against_the_formula(name, parts):
    vectors, _, total = parts
    found = measure_of(name).of(vectors, total)
    assert found.shape == (N_SOURCES, B, Q)
    for index in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        s, b, q = index
        assert found[s, b, q].item() == pytest.approx(plain(name, vectors[s, b, q], total[b, q]), abs=1e-12)


def test_alti_where_coordinates_meet_zero_and_overshoot():
    total = torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)
    for v in (
        [1.0, 0, 0, 0],
        [-1.0, 5.0, -9.0, 3.0],
        [0.0, 0.5, -1.0, 7.0],
        [-0.0, 2.0, -4.0, 6.0],
        [0, -1.0, 1.0, -1],
    ):
        vector = torch.tensor(v, dtype=torch.float64)
        assert measure_of("alti").of(vector, total).item() == pytest.approx(plain("alti", vector, total), abs=1e-15)


def test_alti_in_float32_keeps_its_digits_for_short_vectors():
    """The difference of two sums would lose all of them."""
    generator = torch.Generator().manual_seed(1)
    total = 100 * torch.randn(768, generator=generator)
    vector = 1e-5 * total + 1e-6 * torch.randn(768, generator=generator)
    wanted = plain("alti", vector.double(), total.double())
    assert measure_of("alti").of(vector, total).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("measure", ["share", Onto(torch.randn(3, D, dtype=torch.float64))], ids=["share", "onto"])
def test_signed_measures_add_up_with_the_remainder(measure, parts):
    vectors, rest, total = parts
    measure = measure_of(measure)
    whole = measure.of(vectors, total).sum(0) + measure.of(rest, total)
    torch.testing.assert_close(whole, measure.of(total, total), rtol=0, atol=1e-12)
    if not isinstance(measure, Onto):
        torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", [*MEASURES, Onto(torch.randn(3, D, dtype=torch.float64))], ids=str)
def test_covectors_are_there_for_what_is_linear(measure, parts):
    vectors, _, total = parts
    measure = measure_of(measure)
    covectors = measure.covectors(total)
    assert (covectors is not None) == measure.signed
    if covectors is not None:
        found = (vectors[..., None, :] * covectors).sum(-1)
        torch.testing.assert_close(found.squeeze(-1), measure.of(vectors, total).squeeze(-1), rtol=0, atol=1e-12)


def test_directions_have_a_trailing_axis(parts):
    vectors, _, total = parts
    directions = torch.randn(3, D, dtype=torch.float64)
    wanted = torch.stack([(vectors * u).sum(-1) for u in directions], -1)
    torch.testing.assert_close(Onto(directions).of(vectors, total), wanted)
    torch.testing.assert_close(Onto(directions[0]).of(vectors, total), wanted[..., :1])
    assert Onto(directions).of(vectors.float(), total.float()).dtype == torch.float32


def test_shares_of_a_vanishing_total_are_zero_and_small_totals_do_not_underflow():
    share, vectors = measure_of("share"), torch.randn(3, 2, D)
    total = torch.stack([torch.zeros(D), torch.full((D,), 1e-25)])
    found = share.of(vectors * 1e-25, total)
    assert not found[:, 0].any()
    torch.testing.assert_close(found[:, 1], vectors[:, 1].mean(-1))


def mixture(seed=0, h=3, e=4, k=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, h, Q, k), (B, k, h, e), (h, e, D), (B, Q)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("scaled", [True, False])
def test_mixtures_without_pair_vectors(scaled):
    pattern, values, weight, scale = mixture()
    scale = scale if scaled else None
    vectors = torch.einsum("bhqk,bkhe,hed->kbqd", pattern, values, weight)
    vectors = vectors if scale is None else vectors * scale[..., None]
    total, onto = vectors.sum(0), Onto(torch.randn(5, D, dtype=torch.float64))
    found = mixture_onto(pattern, values, weight, onto.covectors(total), scale)
    torch.testing.assert_close(found, onto.of(vectors, total).permute(1, 2, 0, 3), rtol=0, atol=1e-11)
    share = measure_of("share")
    found = mixture_toward(pattern, values, weight, share.covectors(total)[..., 0, :], scale)
    torch.testing.assert_close(found, share.of(vectors, total).permute(1, 2, 0), rtol=0, atol=1e-11)


def test_bad_measures():
    with pytest.raises(UnknownOptionError, match="'l3' is none of 'l2', 'l1', 'alti', 'share'"):
        measure_of("l3")
    with pytest.raises(UnknownOptionError, match="measure is a int"):
        measure_of(3)
    with pytest.raises(UnknownOptionError, match=r"\[2, 3, 4\]"):
        Onto(torch.zeros(2, 3, 4))
    with pytest.raises(UnknownOptionError, match="width 3, but .* width 8"):
        Onto(torch.zeros(3)).of(torch.zeros(2, D), torch.zeros(D))
