"""Values that merge: what one pass over everything gives, in any order and grouping."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tl_norms.studies.engine.correlation import Pairs, spearman
from tl_norms.studies.engine.moments import Moments
from tl_norms.studies.engine.partial import Excluded, Partial, Spans
from tl_norms.studies.engine.tallies import Rows, Tally
from tl_norms.studies.errors import StudyInputError
from tl_norms.studies.ranks import counted, frequency_correlation, read_ranks

RNG = np.random.default_rng(0)


def groupings(parts):
    """Every order and every bracketing of three values."""
    for a, b, c in itertools.permutations(parts):
        yield a.merge(b).merge(c)
        yield a.merge(b.merge(c))


def same(left, right, tolerance: float = 1e-13) -> bool:
    return all(np.allclose(left.arrays()[k], right.arrays()[k], rtol=tolerance, atol=tolerance) for k in left.arrays())


@pytest.mark.parametrize("sizes", [(5, 3, 9), (1, 1, 1), (4, 0, 7), (0, 0, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_merge_to_those_of_one_pass(sizes, offset):
    values = RNG.normal(size=(2, 3, sum(sizes))) + offset
    parts = [Moments.of(part) for part in np.split(values, np.cumsum(sizes)[:-1], axis=-1)]
    for merged in groupings(parts):
        assert np.allclose(merged.mean, values.mean(-1), rtol=1e-14)
        assert np.allclose(merged.sd, values.std(-1), rtol=1e-9, atol=1e-12)
        assert np.array_equal(merged.min, values.min(-1)) and np.array_equal(merged.max, values.max(-1))
        assert (merged.n == sum(sizes)).all()


def test_moments_of_selected_values_and_of_none():
    values = np.array([[1.0, 2.0, 1e9], [3.0, 5.0, 7.0]])
    found = Moments.of(values, np.array([[True, True, False], [False, False, False]]))
    assert found.mean[0] == 1.5 and found.sd[0] == 0.5 and found.max[0] == 2 and found.min[0] == 1
    assert np.isnan([found.mean[1], found.sd[1], found.min[1], found.max[1]]).all()


@pytest.mark.parametrize("limit", [10_000, 40, 5])
def test_pairs_merge_exactly_whatever_the_order(limit):
    x, y = RNG.random(60), RNG.random(60)
    parts = [Pairs.of(x[part], y[part], limit=limit) for part in (slice(0, 7), slice(7, 50), slice(50, 60))]
    whole = Pairs.of(x, y, limit=limit).spearman()
    assert whole.n == 60 and (whole.error > 0) == (limit < 60)
    for merged in groupings(parts):
        assert merged.n == 60
        found = merged.spearman()
        assert abs(found.rho - whole.rho) < 1e-13 and abs(found.error - whole.error) < 1e-12
        assert (len(merged.cells) > 0) == (limit < 60)


@pytest.mark.parametrize("ties", [False, True])
def test_exact_spearman_is_scipys(ties):
    x, y = RNG.random(500), RNG.random(500)
    if ties:
        x, y = np.round(x, 1), np.round(y + x, 1)
    assert spearman(x, y).rho == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-13)
    assert spearman(x, y).error == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.3, 5.0])
def test_binned_spearman_is_within_its_stated_error(seed, slope):
    rng = np.random.default_rng(seed)
    x = np.exp(rng.normal(size=20_000))
    y = np.exp(slope * 0.1 * np.log(x) + 0.1 * rng.normal(size=20_000))
    found = Pairs.of(x, y, limit=10).spearman()
    exact = stats.spearmanr(x, y)[0]
    assert 0 < abs(found.rho - exact) <= found.error < 0.05


def test_bound_holds_where_order_within_bins_is_the_worst_possible():
    """Two bins only; inside them y runs against x: the exact correlation is far from the binned one."""
    steps = np.linspace(0, 0.001, 50)
    x = np.concatenate([1 + steps, 2 + steps])
    y = np.concatenate([1 + steps[::-1], 2 + steps[::-1]])
    found, exact = Pairs.of(x, y, limit=10).spearman(), stats.spearmanr(x, y)[0]
    assert found.rho == pytest.approx(1) and exact < 0.8
    assert found.rho - exact <= found.error


def test_no_order_no_correlation():
    assert np.isnan(spearman([1.0, 1.0], [1.0, 2.0]).rho) and np.isnan(spearman([1.0], [1.0]).rho)


def test_frequency_ranks_share_the_better_one_and_strangers_come_last(tmp_path):
    ids, counts = np.array([7, 8, 9, 7, 10]), np.array([1, 2, 2, 4, 1])
    assert counted(ids, counts) == {7: 1, 8: 2, 9: 2, 10: 4}
    file = tmp_path / "ranks.txt"
    file.write_text("1 100 7\n2 50 8\n")
    assert read_ranks(file) == {7: 1, 8: 2}
    pairs = Pairs.of([7, 8, 99, 98], [4.0, 3.0, 2.0, 1.0], discrete=True)
    wanted = stats.spearmanr([1, 2, 3, 3], [4, 3, 2, 1])[0]
    assert frequency_correlation(pairs, read_ranks(file)).rho == pytest.approx(wanted)
    assert frequency_correlation(pairs, read_ranks(file), without=(99, 98)).n == 2
    file.write_text("1 100 7\n2 fifty 8\n")
    with pytest.raises(StudyInputError, match="line 2"):
        read_ranks(file)


def test_rows_and_tallies_merge_in_any_order():
    rows = [Rows(np.array([[n, 0]]), np.array([[float(n)]])) for n in (4, 1, 2)]
    assert all(merged.values[:, 0].tolist() == [1, 2, 4] for merged in groupings(rows))
    keys, values = RNG.integers(0, 3, (30, 2)), RNG.random(30)
    parts = [Tally.of(keys[n::3], values[n::3]) for n in range(3)]
    whole = Tally.of(keys, values)
    assert whole.count.sum() == 30 and len(np.unique(whole.keys, axis=0)) == len(whole.keys)
    first = tuple(whole.keys[0])
    chosen = [v for k, v in zip(keys, values, strict=True) if tuple(k) == first]
    assert whole.count[0] == len(chosen) and whole.greatest[0] == max(chosen)
    assert whole.total[0] == pytest.approx(sum(chosen))
    assert all(same(merged, whole) for merged in groupings(parts))


def partial(start: int, end: int) -> Partial:
    values = RNG.normal(size=(2, end - start))
    return Partial(
        Spans(((start, end),)),
        {"x": Moments.of(values)},
        (Excluded(start, "text", "is empty"),),
        (end - start, 1, 2, 0),
        2**128 - 1 - start,
    )


def test_partial_results_merge_associatively_and_count_no_text_twice():
    a, b, c = parts = partial(0, 4), partial(9, 12), partial(4, 9)
    whole = a.merge(b).merge(c)
    assert whole.texts == Spans(((0, 12),)) and whole.counts == (12, 3, 6, 0) and len(whole.excluded) == 3
    assert whole.digest == 2**128 - 3 - 13 and [n in b.texts for n in (8, 9, 11, 12)] == [False, True, True, False]
    for merged in groupings(parts):
        assert merged.texts == whole.texts and merged.counts == whole.counts and merged.excluded == whole.excluded
        assert merged.digest == whole.digest
        assert same(merged.values["x"], whole.values["x"])
    assert whole.merge(b) is whole and b.merge(whole) is whole  # a chunk that came back twice
    assert a.merge(Partial()) is a and Partial().merge(a) is a
    with pytest.raises(StudyInputError, match="share some of their texts"):
        a.merge(b).merge(partial(3, 5))


def test_partial_results_survive_a_file(tmp_path):
    one = partial(0, 4)
    pairs = Pairs.of(RNG.random(9), RNG.random(9), limit=4)
    one.values.update({"x/y": pairs, "x": one.values["x"], "rows": Rows(np.array([[0, 0]]), np.ones((1, 2)))})
    np.savez(tmp_path / "one.npz", **one.arrays())
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        back = Partial.of_arrays(dict(file))
    assert back.texts == one.texts and back.excluded == one.excluded and back.counts == one.counts
    assert back.digest == one.digest
    assert list(back.values) == list(one.values)
    for name, value in one.values.items():
        assert same(back.values[name], value, 0) and type(back.values[name]) is type(value)
    assert back.values["x/y"].merge(pairs).n == 18
