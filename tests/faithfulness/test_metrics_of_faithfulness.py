"""Metrics by hand, and on a linear bag of tokens, whose right attribution is known."""

import itertools

import numpy as np
import pytest

from tl_norms.faithfulness import DEFAULT, METRICS, FaithfulnessInputError, Metric, Scored
from tl_norms.faithfulness.metrics import aopc_bounds, chosen, keep_rates


def table(values: dict[tuple[int, ...], float], m: int):
    """f from a table of kept positions."""
    return lambda kept: np.array([values[tuple(np.flatnonzero(row))] for row in kept])


def scored(scores, f=None, evidence=(), **options) -> Scored:
    flags = np.zeros(len(scores), bool)
    flags[list(evidence)] = True
    return Scored(np.asarray(scores, float), flags, f, **options)


THREE = {(0, 1, 2): 10.0, (1, 2): 4.0, (0, 2): 7.0, (0, 1): 9.0, (0,): 5.0, (1,): 2.0, (2,): 1.0, (): 0.0}


def test_removing_and_keeping_by_hand():
    s = scored([3, 2, 1], table(THREE, 3))  # best first: 0, 1, 2
    run = {name: METRICS[name].function(s) for name in METRICS if METRICS[name].needs == "removal"}
    without = [4.0, 1.0, 0.0]
    only = [5.0, 9.0, 10.0]
    worst = [9.0, 5.0, 0.0]
    assert run["comprehensiveness"] == pytest.approx(np.mean([10 - v for v in without]))
    assert run["sufficiency"] == pytest.approx(np.mean([10 - v for v in only]))
    assert run["SRG"] == pytest.approx(np.mean(np.array(worst) - without))
    assert run["effect correlation"] == pytest.approx(1.0)  # effects 6, 3, 1
    reverse = scored([1, 2, 3], table(THREE, 3))
    assert METRICS["effect correlation"].function(reverse) == pytest.approx(-1.0)
    assert METRICS["SRG"].function(reverse) == pytest.approx(-run["SRG"])


def test_naopc_knows_the_best_and_the_worst_of_all_orders():
    f = table(THREE, 3)
    every = []
    for order in itertools.permutations(range(3)):
        kept = [tuple(sorted(set(range(3)) - set(order[:k]))) for k in (1, 2, 3)]
        every.append(np.mean([10 - THREE[sets] for sets in kept]))
    assert aopc_bounds(f, 3) == pytest.approx((min(every), max(every)))
    for order in itertools.permutations(range(3)):
        scores = [-order.index(j) for j in range(3)]
        kept = [tuple(sorted(set(range(3)) - set(order[:k]))) for k in (1, 2, 3)]
        wanted = (np.mean([10 - THREE[sets] for sets in kept]) - min(every)) / (max(every) - min(every))
        assert METRICS["NAOPC"].function(scored(scores, f)) == pytest.approx(wanted)


def random_f(m: int, seed: int):
    values = np.random.default_rng(seed).normal(size=2**m)
    return lambda kept: values[kept @ (1 << np.arange(m))]


def test_a_beam_finds_bounds_within_those_of_all_orders():
    m, f = 6, random_f(6, 1)
    low, high = aopc_bounds(f, m)
    some = aopc_bounds(f, m, exact=0, beam=3)
    assert low <= some[0] + 1e-12 and some[1] <= high + 1e-12
    assert aopc_bounds(f, m, exact=0, beam=2**m) == pytest.approx((low, high))
    full = f(np.ones((1, m), bool))[0]
    brute = []
    for order in itertools.permutations(range(m)):
        kept = np.ones((m, m), bool)
        for k in range(m):
            kept[k, list(order[: k + 1])] = False
        brute.append((full - f(kept)).mean())
    assert (low, high) == pytest.approx((min(brute), max(brute)))


def test_a_beam_beyond_eight_positions():
    weights = np.random.default_rng(0).normal(size=10)
    f = lambda kept: kept @ weights  # noqa: E731
    assert METRICS["NAOPC"].function(scored(weights, f)) == pytest.approx(1.0)
    assert METRICS["NAOPC"].function(scored(-weights, f)) == pytest.approx(0.0)


def test_fractions_state_the_numbers_of_positions():
    assert scored(np.arange(10), fractions=(0.1, 0.25, 0.5)).ks == (1, 3, 5)
    assert scored(np.arange(2), fractions=(0.01, 0.1, 1.0)).ks == (1, 2)
    assert scored(np.arange(4)).ks == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("scores", "evidence", "rank", "mass"),
    [
        ([1.0, 5.0, 2.0], [1], 1.0, 5 / 8),
        ([1.0, 5.0, 2.0], [0], 1 / 3, 1 / 8),
        ([1.0, 5.0, 2.0], [0, 2], 1 / 2, 3 / 8),
        ([1.0, -5.0, 2.0], [1], 1 / 3, 0.0),  # signed: the largest magnitude is no evidence for the target
        ([1.0, 1.0, 1.0], [1], 1 / 3, 1 / 3),  # ties count against it
        ([-1.0, -2.0, -3.0], [0], 1.0, 0.0),
    ],
)
def test_evidence_by_hand(scores, evidence, rank, mass):
    s = scored(scores, evidence=evidence)
    assert METRICS["MRR"].function(s) == pytest.approx(rank)
    assert METRICS["RMA"].function(s) == pytest.approx(mass)


def test_what_is_not_defined_is_nan():
    nothing = scored([1.0, 2.0])
    assert np.isnan(METRICS["MRR"].function(nothing)) and np.isnan(METRICS["RMA"].function(nothing))
    two = scored([1.0, 2.0], lambda kept: kept.sum(1).astype(float))
    assert np.isnan(METRICS["effect correlation"].function(two))
    assert np.isnan(METRICS["NAOPC"].function(two))  # every order is as good
    with pytest.raises(FaithfulnessInputError, match="give it a removal"):
        METRICS["SRG"].function(nothing)
    with pytest.raises(FaithfulnessInputError, match="'replace'"):
        METRICS["soft sufficiency"].function(two)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    "scores", [[0.0, 1.0, 2.0, 9.0], [1.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 3.0], [-5.0, -1.0, 0.0, 7.0]]
)
def test_soft_rates_are_equal_for_all_methods(rate, scores):
    rates = keep_rates(np.array(scores), rate)
    assert rates.mean() == pytest.approx(rate) and rates.min() >= 0 and rates.max() <= 1
    assert (np.diff(rates[np.argsort(scores)]) >= 0).all()


# ---- a linear bag of tokens: f(S) = sum of the weights in S ------------------------------------------------

WEIGHTS = np.array([2.0, -1.0, 0.5, 3.0, -0.25, 1.0])


def bag(scores) -> Scored:
    f = lambda kept: kept @ WEIGHTS  # noqa: E731
    return Scored(np.asarray(scores, float), WEIGHTS > 0, f, soft=f)


def rivals() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found = {f"random {n}": generator.normal(size=6) for n in range(20)}
    found |= {f"permuted {n}": generator.permutation(WEIGHTS) for n in range(20)}
    return found | {
        "reversed": -WEIGHTS,
        "unsigned": np.abs(WEIGHTS),
        "recency": np.arange(6.0),
        "constant": np.ones(6),
    }


@pytest.mark.parametrize("name", METRICS)
def test_the_true_weights_win_every_metric(name):
    metric = METRICS[name]
    sign = {"↑": 1, "↓": -1}[metric.better]
    best = sign * metric.function(bag(WEIGHTS))
    others = {
        rival: sign * metric.function(bag(scores))
        for rival, scores in rivals().items()
        if not (name.startswith("soft") and rival.startswith(("random", "recency")))  # other spreads of rates
    }
    assert all(not value > best + 1e-9 for value in others.values())  # nan wins nothing
    assert np.nanmin(list(others.values())) < best - 0.1


def test_the_true_weights_beat_every_order():
    best = METRICS["SRG"].function(bag(WEIGHTS))
    every = [METRICS["SRG"].function(bag(order)) for order in itertools.permutations(range(6))]
    assert max(every) == pytest.approx(best) and METRICS["NAOPC"].function(bag(WEIGHTS)) == pytest.approx(1.0)


def test_names_say_which_direction_is_better():
    assert METRICS["SRG"].label("cut") == "SRG (cut) ↑" and METRICS["sufficiency"].label("replace").endswith("↓")
    assert METRICS["effect correlation"].label("swap") == "counterfactual effect correlation ↑"
    assert {metric.better for metric in METRICS.values()} == {"↑", "↓"}
    assert isinstance(chosen(None)[0], Metric) and [metric.name for metric in chosen(None)] == list(DEFAULT)
    with pytest.raises(FaithfulnessInputError, match="no metric 'F1'"):
        chosen(("F1",))


def test_ties_are_broken_as_told():
    f = lambda kept: kept @ np.array([1.0, 2.0])  # noqa: E731
    first = Scored(np.ones(2), np.zeros(2, bool), f, ties=np.array([0, 1]))
    second = Scored(np.ones(2), np.zeros(2, bool), f, ties=np.array([1, 0]))
    assert METRICS["comprehensiveness"].function(first) == pytest.approx((1 + 3) / 2)
    assert METRICS["comprehensiveness"].function(second) == pytest.approx((2 + 3) / 2)
