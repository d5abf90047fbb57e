"""Measures in `block_norms` and `decompose`: against dense vectors, adding up, whatever the memory."""

import feed_forward_reference as ref
import pytest
import torch
from tiny import CASES, make

import tl_norms
from tl_norms import layer_numbers, metrics, plot
from tl_norms.linear.measure import values
from tl_norms.linear.measure.measures import MEASURES, measure_of
from tl_norms.metrics.cancellation import cancellation
from tl_norms.plot.subjects import maps_of

needs_bridge = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
DIRECTIONS = torch.randn(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
ALL = [*MEASURES, tl_norms.Onto(DIRECTIONS)]


def plain(measure, vectors, rest):
    """Of all pairs and of the remainder, from vectors [b q k d], by the formulas."""
    total = vectors.sum(2) + rest
    if isinstance(measure, tl_norms.Onto):
        return tuple(torch.stack([(v * u).sum(-1) for u in DIRECTIONS], -1) for v in (vectors, rest))

    def of(v, y):
        if measure == "l2":
            return v.pow(2).sum(-1).sqrt()
        if measure == "l1":
            return v.abs().sum(-1)
        if measure == "alti":
            return (y.abs().sum(-1) - (y - v).abs().sum(-1)).clamp_min(0)
        return (v * y).sum(-1) / y.pow(2).sum(-1)

    return of(vectors, total[:, :, None]), of(rest, total)


def near(found, wanted, limit=1e-10):
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= limit * float(wanted.abs().max())


@needs_bridge
@pytest.mark.parametrize("measure", ALL, ids=str)
@pytest.mark.parametrize("layout", ref.LAYOUTS)
def test_every_scope_against_dense_vectors(layout, measure):
    model, ids = ref.tiny(layout), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    norms = tl_norms.block_norms(cache, "all", measure=measure)
    plain_ratios = tl_norms.block_norms(cache, "all").mixing_ratios
    assert norms.measure.name == measure_of(measure).name and norms.facts.measure.signed == (measure in ALL[3:])
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        for scope, (vectors, rest) in ref.dense_scopes(block, "player").items():
            wanted, left = (v.detach() for v in plain(measure, vectors, rest))
            near(norms[scope, layer], wanted)
            near(norms.remainder(scope)[layer], left)
            parts = tl_norms.decompose(cache, layer, scope)
            near(parts.measure(measure), wanted)
            near(parts.remainder_measure(measure), left)
            assert torch.equal(norms.mixing_ratio(scope), plain_ratios[scope])


@needs_bridge
@pytest.mark.parametrize("ff", ["ig", "half", "gate", "drop"])
def test_shares_add_up_to_one_under_every_rule(ff):
    cache = ref.cached(ref.bridged(ref.tiny("llama")), ref.tokens())
    norms = tl_norms.block_norms(cache, "all", measure="share", ff=ff)
    for scope in norms.scopes:
        whole = norms[scope].sum(-1) + norms.remainder(scope)
        torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-12)


@needs_bridge
@pytest.mark.parametrize("measure", ["l1", "alti"])
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_results_do_not_depend_on_memory(layout, measure):
    cache = ref.cached(ref.bridged(ref.tiny(layout)), ref.tokens(n=19))
    wanted = tl_norms.block_norms(cache, "all", measure=measure, layers=0)
    for budget in (200_000, 1 << 22):
        found = tl_norms.block_norms(cache, "all", measure=measure, layers=0, max_memory=budget)
        for scope in found.scopes:
            torch.testing.assert_close(found[scope], wanted[scope], rtol=1e-12, atol=1e-12)
    with pytest.raises(tl_norms.MemoryBudgetError):
        tl_norms.block_norms(cache, "all", measure=measure, max_memory=1)


@needs_bridge
def test_pair_vectors_are_formed_in_chunks(monkeypatch):
    """Never [query, key, d_model] at once."""
    largest = 0
    real = values.pairs

    def watched(*arguments):
        nonlocal largest
        vectors = real(*arguments)
        largest = max(largest, vectors.numel() * vectors.element_size())
        return vectors

    monkeypatch.setattr(values, "pairs", watched)
    cache = ref.cached(ref.bridged(ref.tiny("gpt2")), ref.tokens(n=64))
    for scope in ("attn_res", "attn_res_ln_ff_res"):
        tl_norms.block_norms(cache, scope, measure="alti", layers=0, max_memory=300_000)
        assert 0 < largest <= 300_000 < 64 * 64 * 24 * 8


@needs_bridge
@pytest.mark.parametrize("measure", ALL, ids=str)
def test_float32_against_float64(measure):
    model, ids = ref.tiny("llama", torch.float32), ref.tokens()
    single = tl_norms.block_norms(ref.cached(ref.bridged(model), ids), "all", measure=measure)
    double = tl_norms.block_norms(ref.cached(ref.bridged(model.double()), ids), "all", measure=measure)
    for scope in single.scopes:
        assert single[scope].dtype == torch.float32
        near(single[scope].double(), double[scope], 5e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in ("gpt2", "bert")], ids=str)
def test_padding_counts_for_nothing(case):
    tiny = make(*case)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    padded = tl_norms.block_norms(tiny.cache(mask=mask), "attn_res", measure="share", mask=mask)
    alone = tl_norms.block_norms(tiny.cache(tiny.tokens()[1:, :5]), "attn_res", measure="share")
    near(padded["attn_res"][:, 1:, :5, :5], alone["attn_res"], 1e-5)
    assert not padded["attn_res"][:, 1, 5:].any() and not padded.remainder("attn_res")[:, 1, 5:].any()


@pytest.fixture(scope="module")
def cache():
    return make(*next(case for case in CASES if case[0] == "gpt2")).cache()


@pytest.mark.parametrize(("measure", "wrong"), [("share", "values"), ("share", "rest"), ("l1", "values")])
def test_wrong_numbers_are_found(cache, monkeypatch, measure, wrong):
    """A number of one pair changed on the way: the sum or the pair formed by itself tells."""
    real = layer_numbers.source_values

    def broken(*arguments, **options):
        found = real(*arguments, **options)
        if wrong == "values":
            found[0, 4, 3] *= 1.01
        return found

    monkeypatch.setattr(layer_numbers, "source_values", broken)
    if wrong == "rest":
        kind = type(measure_of(measure))
        good = kind.of
        monkeypatch.setattr(kind, "of", lambda self, v, y: good(self, v, y) * (1 if v.ndim > 3 or v is y else 1.5))
    with pytest.raises(tl_norms.DecompositionError, match="differ from vectors"):
        tl_norms.block_norms(cache, "attn_res", measure=measure)


def test_what_a_measure_does_not_go_with(cache):
    onto = tl_norms.Onto(torch.ones(32, dtype=torch.float64))
    norms = tl_norms.block_norms(cache, measure=onto)
    assert norms["attn"].shape[-1] == 1 and norms.pairs("attn").shape == (2, 7, 7)
    assert "query key direction]" in repr(norms) and "signed" in repr(norms)
    for call in (
        norms.to_dataframe,
        lambda: tl_norms.block_norms(cache, measure="share", sketch=8),
        lambda: tl_norms.extend_cache(cache, measure="share"),
        lambda: tl_norms.block_norms(cache, measure=tl_norms.Onto(torch.ones(5))),
        lambda: tl_norms.decompose(cache, 0, "attn", measure="l1"),
        lambda: tl_norms.decompose(cache, 0, "attn").measure("l3"),
    ):
        with pytest.raises(tl_norms.UnknownOptionError):
            call()
    with pytest.raises(tl_norms.NonFiniteError):
        tl_norms.Onto(torch.full((3,), torch.nan))
    assert "strongest_value" in tl_norms.block_norms(cache, measure="l1").to_dataframe()


def test_metrics_are_about_lengths_and_plots_go_both_ways(cache):
    signed = tl_norms.block_norms(cache, "all", measure="share")
    for call in (metrics.component_changes, metrics.ff_amplification):
        with pytest.raises(metrics.MetricsInputError, match="'share'"):
            call(signed)
    with pytest.raises(metrics.MetricsInputError):
        cancellation(cache, measure="share")
    onto = tl_norms.block_norms(cache, measure=tl_norms.Onto(torch.ones(32, dtype=torch.float64)))
    with pytest.raises(plot.PlotInputError, match="direction"):
        plot.layer_maps(onto, ["a"] * 7, batch=0, backend="matplotlib")
    assert maps_of(signed).signed and maps_of(signed).unit == "share of the position's vector"
    assert not maps_of(signed, "Attn-W").signed and not maps_of(tl_norms.block_norms(cache)).signed
