"""Every spec of the zoo is exact at every scope, or refused with an error that names the component."""

import pytest
import torch

import tl_norms

from . import zoo

EXACT = [name for name, spec in zoo.SPECS.items() if spec.refused is None and spec.broken is None]
REFUSED = [name for name, spec in zoo.SPECS.items() if spec.refused is not None]
BROKEN = [name for name, spec in zoo.SPECS.items() if spec.broken is not None]
FLOAT32 = 2e-5


def cached(name: str, dtype: torch.dtype = torch.float64) -> zoo.Made:
    try:
        return zoo.cached(zoo.SPECS[name], dtype)
    except zoo.NotHere as reason:
        pytest.skip(str(reason))
    except ValueError as error:  # TransformerLens' configuration of an older version
        if "Unsupported architecture" in str(error):
            pytest.skip(str(error))
        raise


def worst(norms: tl_norms.BlockNorms) -> float:
    """The largest completeness error; nan counts as none (a sum that TransformerLens does not hook)."""
    return max(float(error.nan_to_num(0).max()) for error in norms.error.values())


@pytest.mark.parametrize("name", EXACT)
def test_every_scope_is_complete_in_float64(name):
    spec, made = zoo.SPECS[name], cached(name)
    norms = tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    assert norms.scopes == tl_norms.scopes(made.bridge, stack=spec.stack)
    assert norms.scopes[0] == "attn" and norms.scopes[-1].count("_res") == norms.scopes[-1].count("ff") + (
        "attn_res" in norms.scopes[-1] or "attn_ln_res" in norms.scopes[-1]
    ) + norms.scopes[-1].count("cross"), "the chain ends behind the last residual connection"
    assert (spec.stack == "decoder") == ("cross" in norms.scopes[-1])
    for scope, error in norms.error.items():
        assert not error.isnan().any(), f"{scope} was not compared with anything"
        assert float(error.max()) < (FLOAT32 if spec.only_float32 else spec.tolerance), scope
    for scope in norms.scopes:
        ratio = norms.mixing_ratio(scope)
        assert bool(((ratio >= 0) & (ratio <= 1)).all()), scope


@pytest.mark.parametrize("name", EXACT)
def test_every_scope_is_complete_in_float32(name):
    made = cached(name, torch.float32)
    norms = tl_norms.block_norms(made.cache, "all", stack=zoo.SPECS[name].stack)
    assert worst(norms) < FLOAT32
    assert norms["attn"].dtype == torch.float32


@pytest.mark.parametrize("name", EXACT)
def test_maps_are_the_lengths_of_the_vectors_and_unseen_sources_are_zero(name):
    spec, made = zoo.SPECS[name], cached(name)
    norms = tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    layer = norms.layers[-1]
    seen = norms.patterns[-1].abs().sum(1) > 0
    seen = seen | torch.eye(seen.shape[-1], dtype=torch.bool)
    for scope in norms.scopes:
        parts = tl_norms.decompose(made.cache, layer=layer, scope=scope, stack=spec.stack)
        vectors = parts.vectors()
        torch.testing.assert_close(norms[scope][-1], vectors.norm(dim=-1), rtol=1e-6, atol=1e-9)
        unseen = norms[scope][-1][..., : norms.boundary][~seen]
        assert not unseen.any(), f"{scope}: a source that is not attended to has a length"
        torch.testing.assert_close(vectors.sum(-2) + parts.remainder, parts.total(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EXACT)
def test_biases_may_be_fixed_instead(name):
    spec, made = zoo.SPECS[name], cached(name)
    scopes = [scope for scope in tl_norms.scopes(made.bridge, stack=spec.stack) if "ff" in scope]
    norms = tl_norms.block_norms(made.cache, scopes, stack=spec.stack, bias="fixed")
    assert worst(norms) < (FLOAT32 if spec.only_float32 else spec.tolerance)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    spec, made = zoo.SPECS[name], cached(name)
    with pytest.raises(tl_norms.TLNormsError) as refusal:
        tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    assert spec.refused in str(refusal.value)


@pytest.mark.parametrize("name", BROKEN)
def test_what_transformerlens_cannot_run_still_fails_there(name):
    """If this fails, TransformerLens has fixed its bug: the spec can move to the exact ones."""
    try:
        with pytest.raises(Exception, match=zoo.SPECS[name].broken):
            zoo.cached(zoo.SPECS[name])
    except zoo.NotHere as reason:
        pytest.skip(str(reason))


def test_the_zoo_is_large_and_covers_what_is_registered():
    assert len({zoo.SPECS[name].architecture for name in EXACT}) >= 80
    assert len(zoo.SPECS) >= 90
