"""Every number of the attention block against the dense reference, over families, kinds of model and precisions."""

import pytest
import reference
import torch
from tiny import CASES, FAMILIES, N_HEADS, N_LAYERS, make, same

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")
FLOAT32 = 2e-5


def relative(found, expected):
    """The largest difference relative to the entry itself."""
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert bool((found[expected == 0] == 0).all())
    there = expected != 0
    return float(((found - expected).abs() / expected.abs())[there].max())


def tolerance(tiny):
    """1e-10 in float64, except where the two forward passes themselves differ.

    Hugging Face takes RMSNorm, rotary angles and Llama's softmax in float32 even in a float64 model. A bridge runs
    Hugging Face's own code, so nothing changes. HookedTransformer takes them in float64: there both runs agree to
    float32 only, whatever is computed from them.
    """
    if tiny.dtype == torch.float32:
        return FLOAT32
    return 5e-6 if tiny.kind == "hooked" and tiny.family.rms else 1e-10


@pytest.fixture(params=[(*case, dtype) for case in CASES for dtype in (torch.float64, torch.float32)], ids=str)
def run(request):
    tiny = make(*request.param)
    return tiny, tiny.cache(), reference.analyse(tiny.hf, tiny.tokens())


def test_every_quantity_agrees_with_the_reference(run):
    tiny, cache, layers = run
    limit = tolerance(tiny)
    norms = tl_norms.block_norms(cache, SCOPES)
    assert norms.scopes == SCOPES and norms.layers == tuple(range(N_LAYERS))
    for scope in SCOPES:
        assert norms[scope].dtype == tiny.dtype
        assert relative(norms[scope], torch.stack([layer.norms(scope) for layer in layers])) < limit
        ratios = torch.stack([layer.mixing_ratio(scope) for layer in layers])
        assert (norms.mixing_ratio(scope) - ratios).abs().max() < limit
    assert relative(norms.value_norms, torch.stack([layer.value_norms for layer in layers])) < limit
    assert relative(norms.head_norms, torch.stack([layer.weighted_value_norms for layer in layers])) < limit
    assert relative(norms.attention, torch.stack([layer.attention for layer in layers])) < limit
    assert relative(norms.attention_residual, torch.stack([layer.attention_residual for layer in layers])) < limit
    for residual in (False, True):
        expected = torch.stack([layer.attention_mixing_ratio(residual) for layer in layers])
        assert (norms.attention_mixing_ratio(residual=residual) - expected).abs().max() < limit


def test_functions_of_the_2020_paper_agree_with_the_reference(run):
    tiny, cache, layers = run
    limit = tolerance(tiny)
    assert relative(tl_norms.value_norms(cache), torch.stack([layer.value_norms for layer in layers])) < limit
    weighted = torch.stack([layer.weighted_value_norms for layer in layers])
    assert relative(tl_norms.weighted_value_norms(cache), weighted) < limit
    for number, layer in enumerate(layers):
        vectors = tl_norms.value_vectors(cache, number)
        assert vectors.shape == layer.values.shape
        assert reference.length(vectors - layer.values).max() < limit * reference.length(layer.values).max()


def test_every_scope_is_complete(run):
    """The parts add up, in every layer. (That an edit shows in the error: test_hooks, test_bad_input.)"""
    tiny, cache, _ = run
    norms = tl_norms.block_norms(cache, SCOPES)
    assert set(norms.error) == set(SCOPES)
    for scope, error in norms.error.items():
        rounded = tiny.dtype == torch.float32 or (tiny.family.rms and scope == "attn_res_ln")  # see tolerance()
        assert error.shape == (N_LAYERS,) and float(error.max()) < (1e-6 if rounded else 1e-14)


@pytest.mark.parametrize("name, kind", CASES)
def test_chain_and_default_scopes(name, kind):
    tiny = make(name, kind)
    pre = ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res")
    post_norm = FAMILIES[name].post_norm
    assert tl_norms.scopes(tiny.model) == (*pre, "attn_res_ln_ff_res_ln") if post_norm else pre
    assert tl_norms.block_norms(tiny.cache()).scopes == (SCOPES if post_norm else SCOPES[:2])


@pytest.mark.parametrize("name, kind", CASES)
def test_without_a_batch_axis(name, kind):
    """remove_batch_dim: the same numbers, one axis less, in every result."""
    tiny = make(name, kind)
    tokens = tiny.tokens(batch=1)
    batched, single = tiny.cache(tokens), tiny.cache(tokens, remove_batch_dim=True)
    if single.has_batch_dim:
        pytest.skip("this model does not remove the batch axis")
    expected, norms = tl_norms.block_norms(batched, SCOPES), tl_norms.block_norms(single, SCOPES)
    n = tokens.shape[1]
    assert norms["attn"].shape == (N_LAYERS, n, n) and norms.value_norms.shape == (N_LAYERS, N_HEADS, n)
    for scope in SCOPES:
        assert same(norms[scope], expected[scope][:, 0])
        assert same(norms.mixing_ratio(scope), expected.mixing_ratio(scope)[:, 0])
    for quantity in ("value_norms", "head_norms", "attention", "attention_residual"):
        assert same(getattr(norms, quantity), getattr(expected, quantity)[:, 0])
    assert same(norms.attention_mixing_ratio(), expected.attention_mixing_ratio()[:, 0])
    assert same(tl_norms.value_vectors(single, 1), tl_norms.value_vectors(batched, 1)[0])
    assert same(tl_norms.value_norms(single), tl_norms.value_norms(batched)[:, 0])
    assert same(tl_norms.weighted_value_norms(single), tl_norms.weighted_value_norms(batched)[:, 0])
    one, many = tl_norms.decompose(single, 0, "attn_res"), tl_norms.decompose(batched, 0, "attn_res")
    assert same(one.vectors(), many.vectors()[0]) and same(one.remainder, many.remainder[0])
    assert "batch" not in norms.to_dataframe() and "batch" not in repr(norms)
    mask = torch.ones(n, dtype=torch.long)
    assert same(tl_norms.block_norms(single, mask=mask)["attn_res"], expected["attn_res"][:, 0])


@pytest.mark.parametrize("name, kind", CASES)
def test_layers_argument(name, kind):
    tiny = make(name, kind)
    cache = tiny.cache()
    every = tl_norms.block_norms(cache)
    for layers, numbers in ((1, [1]), (-1, [1]), ([0], [0]), ([1, 0], [1, 0]), (range(2), [0, 1]), (-2, [0])):
        some = tl_norms.block_norms(cache, layers=layers)
        assert some.layers == tuple(numbers)
        assert same(some["attn_res"], every["attn_res"][numbers])
        assert same(tl_norms.value_norms(cache, layers), tl_norms.value_norms(cache)[numbers])
        assert same(tl_norms.weighted_value_norms(cache, layers), every.head_norms[numbers])
    assert same(tl_norms.value_vectors(cache, -1), tl_norms.value_vectors(cache, 1))
    assert not same(every["attn_res"][0], every["attn_res"][1])


@pytest.mark.parametrize("name, kind", CASES)
def test_paper_names_are_keys(name, kind):
    tiny = make(name, kind)
    norms = tl_norms.block_norms(tiny.cache(), SCOPES)
    block = "attn_res_ln" if FAMILIES[name].post_norm else "attn_res"
    for paper, scope in {
        "Attn-N": "attn", "AttnRes-N": "attn_res", "AttnResLn-N": "attn_res_ln", "ATB": block, "ATBLN": "attn_res_ln",
    }.items():  # fmt: skip
        assert norms[paper] is norms[scope] and paper in norms
        assert same(norms.mixing_ratio(paper), norms.mixing_ratio(scope))
        assert tl_norms.decompose(tiny.cache(), 0, paper).scope == scope
    assert tl_norms.block_norms(tiny.cache(), "ATB").scopes == (block,)
    assert "ATBFF" not in norms and "attn_ff" not in norms
    assert list(norms) == list(SCOPES) and len(norms) == 3


def test_causal_maps_have_an_empty_upper_triangle(run):
    tiny, cache, _ = run
    norms = tl_norms.block_norms(cache, SCOPES)
    assert norms.causal is not tiny.family.post_norm
    for scope in SCOPES:
        assert bool((norms[scope].triu(1) == 0).all()) is not tiny.family.post_norm


def test_scopes_come_in_the_order_of_the_chain_and_once(run):
    _, cache, _ = run
    assert tl_norms.block_norms(cache, ["attn_res", "attn", "AttnRes-N"]).scopes == ("attn", "attn_res")


def test_dataframe_and_repr_tell_the_numbers(run):
    _, cache, layers = run
    norms = tl_norms.block_norms(cache)
    frame = norms.to_dataframe()
    n_batch, n = norms["attn"].shape[1:3]
    assert len(frame) == len(norms.scopes) * N_LAYERS * n_batch * n
    row = frame[(frame.scope == "attn_res") & (frame.layer == 1) & (frame.batch == 1) & (frame["query"] == n - 1)]
    assert row.mixing_ratio.item() == pytest.approx(float(layers[1].mixing_ratio("attn_res")[1, -1]), abs=1e-5)
    lengths = layers[1].norms("attn_res")[1, -1]
    assert row.strongest_source.item() == int(lengths.argmax())
    assert row.strongest_norm.item() == pytest.approx(float(lengths.max()), rel=1e-5)
    assert row.error.item() == pytest.approx(float(norms.error["attn_res"][1]))
    mean = float(torch.stack([layer.mixing_ratio("attn_res") for layer in layers]).mean())
    assert f"{mean:6.1%}" in repr(norms) and "weight processing: none" in repr(norms)
