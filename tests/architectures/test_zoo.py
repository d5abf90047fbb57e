"""Every spec of the zoo is exact at every scope, or refused with an error that names the component."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tl_norms

from . import zoo

EXACT = [name for name, spec in zoo.SPECS.items() if spec.refused is None and spec.broken is None]
REFUSED = [name for name, spec in zoo.SPECS.items() if spec.refused is not None]
BROKEN = [name for name, spec in zoo.SPECS.items() if spec.broken is not None]


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


def near(found: Tensor, expected: Tensor, limit: float) -> bool:
    """The largest difference is below this part of the largest number."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float((found - expected).abs().max()) < limit * float(expected.abs().max())


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
        assert float(error.max()) < spec.limit(), scope
    for scope in norms.scopes:
        ratio = norms.mixing_ratio(scope)
        assert bool(((ratio >= 0) & (ratio <= 1)).all()), scope


@pytest.mark.parametrize("name", EXACT)
def test_every_scope_is_complete_in_float32(name):
    spec, made = zoo.SPECS[name], cached(name, torch.float32)
    norms = tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    assert worst(norms) < spec.limit(torch.float32)
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
        lengths = vectors.norm(dim=-1)
        rounding = 1e-9 if lengths.dtype == torch.float64 else zoo.FLOAT32  # two ways to the same number
        assert near(norms[scope][-1], lengths, rounding), scope
        unseen = norms[scope][-1][..., : norms.boundary][~seen]
        assert not unseen.any(), f"{scope}: a source that is not attended to has a length"
        assert near(vectors.sum(-2) + parts.remainder, parts.total(), spec.limit()), scope


@pytest.mark.parametrize("name", EXACT)
def test_biases_may_be_fixed_instead(name):
    spec, made = zoo.SPECS[name], cached(name)
    scopes = [scope for scope in tl_norms.scopes(made.bridge, stack=spec.stack) if "ff" in scope]
    norms = tl_norms.block_norms(made.cache, scopes, stack=spec.stack, bias="fixed")
    assert worst(norms) < spec.limit()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    spec, made = zoo.SPECS[name], cached(name)
    with pytest.raises(tl_norms.TLNormsError) as refusal:
        tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    assert spec.refused in str(refusal.value)


@pytest.mark.parametrize("name", BROKEN)
def test_what_transformerlens_cannot_run_still_fails_there(name):
    """If this fails, TransformerLens has fixed its bug: the spec can move to the exact ones."""
    with pytest.raises(Exception) as raised:  # some only while the cache is made: these are known, so that will do
        zoo.cached(zoo.SPECS[name])
    if isinstance(raised.value, zoo.NotHere) and not isinstance(raised.value, zoo.CannotRun):
        pytest.skip(str(raised.value))
    assert zoo.SPECS[name].broken in str(raised.value)


# ---- who is at fault: only what TransformerLens itself cannot run may be skipped

GPT2 = zoo.SPECS["GPT2LMHeadModel"]


def _raising(module: str):
    """A forward pass that raises, as code of a module of that name."""
    names = {"__name__": module}
    exec("def forward(self, *args, **options):\n    raise RuntimeError('on purpose')", names)
    return names["forward"]


def _block_bridge():
    from transformer_lens.model_bridge.generalized_components.block import BlockBridge

    return BlockBridge


def test_a_bridge_that_fails_inside_of_transformerlens_cannot_run(monkeypatch):
    bridge = zoo.boot(GPT2, zoo.make(GPT2))
    monkeypatch.setattr(_block_bridge(), "forward", _raising("transformer_lens.somewhere"))
    monkeypatch.setattr(zoo, "_cannot_run", set())
    with pytest.raises(zoo.CannotRun, match=r"transformer_lens \d.*on purpose"):
        zoo.run(bridge, zoo.tokens(), GPT2)
    monkeypatch.setattr(zoo, "_cannot_run", set("12345678"))
    with pytest.raises(AssertionError, match="cannot run 9 architectures"):  # so many: not theirs
        zoo.run(bridge, zoo.tokens(), GPT2)


@pytest.mark.parametrize("module", ["tl_norms.hooks", "architectures.zoo_standins", "torch.nn"])
def test_errors_of_our_own_code_are_not_put_down_to_transformerlens(module, monkeypatch):
    bridge = zoo.boot(GPT2, zoo.make(GPT2))
    norm = type(bridge.blocks[0].ln1)
    monkeypatch.setattr(norm, "forward", _raising(module))
    with pytest.raises(Exception, match="on purpose") as found:
        zoo.run(bridge, zoo.tokens(), GPT2)
    # torch never raises by itself: whoever called it did
    assert isinstance(found.value, zoo.CannotRun) == (module == "torch.nn")


def test_a_cache_that_fails_where_the_plain_pass_works_is_a_failure(monkeypatch):
    bridge = zoo.boot(GPT2, zoo.make(GPT2))
    monkeypatch.setattr(type(bridge), "run_with_cache", _raising("transformer_lens.somewhere"))
    with pytest.raises(RuntimeError, match="on purpose"):
        zoo.run(bridge, zoo.tokens(), GPT2)


def test_a_configuration_that_transformers_cannot_run_is_a_failure():
    small = replace(GPT2, build=lambda: zoo.from_config(GPT2.name, "GPT2Config", dict(GPT2.options, vocab_size=10)))
    with pytest.raises(IndexError):
        zoo.run(zoo.boot(small, zoo.make(small)), zoo.tokens(), small)


def test_the_zoo_is_large_and_covers_what_is_registered():
    assert len({zoo.SPECS[name].architecture for name in EXACT}) >= 80
    assert len(zoo.SPECS) >= 90
