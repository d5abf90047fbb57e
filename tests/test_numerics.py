"""Rounding and memory: heads that cancel, half precision, and no tensor of size [query, key, d_model]."""

import copy

import pytest
import reference
import torch
from tiny import D_MODEL, FAMILIES, KINDS, N_CTX, N_HEADS, N_LAYERS, Tiny, boot, hooked, hugging_face, make, waves
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens import ActivationCache

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")
EPSILON = 1e-4
HALF = {torch.float16: 2e-2, torch.bfloat16: 1e-1}


def cancelling(hf):
    """Make heads 2 m and 2 m + 1 equal but for W_O: opposite in the first half of d_model, EPSILON in the second."""
    d_head, half = D_MODEL // N_HEADS, D_MODEL // 2
    with torch.no_grad():
        for layer, block in enumerate(hf.transformer.h):
            for first in range(0, N_HEADS, 2):
                one, two = (slice((first + n) * d_head, (first + n + 1) * d_head) for n in (0, 1))
                for part in range(3):  # query, key, value
                    shift = part * D_MODEL
                    left, right = (slice(s.start + shift, s.stop + shift) for s in (one, two))
                    block.attn.c_attn.weight[:, right] = block.attn.c_attn.weight[:, left]
                    block.attn.c_attn.bias[right] = block.attn.c_attn.bias[left]
                out = block.attn.c_proj.weight
                out[one, half:] = 0
                out[two, :half] = -out[one, :half]
                out[two, half:] = EPSILON * waves((d_head, half), phase=layer + first).to(out.dtype)
    return hf


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_nearly_cancel(kind, monkeypatch):
    """In float32 the Gram form sqrt(aᵀGa) loses what is left; the package does not."""
    monkeypatch.setattr("tiny.hugging_face", lambda *args: cancelling(hugging_face(*args)))
    family = FAMILIES["gpt2"]
    hf = cancelling(hugging_face(family, torch.float32))
    model = boot(copy.deepcopy(hf), family.hf_class) if kind == "bridge" else hooked(family, torch.float32)
    with torch.no_grad():
        cache = model.run_with_cache(Tiny.tokens())[1]
    norms = tl_norms.block_norms(cache)
    for layer in range(N_LAYERS):
        pattern, values = cache["pattern", layer], cache["v", layer]
        weight = hf.transformer.h[layer].attn.c_proj.weight.reshape(N_HEADS, -1, D_MODEL)
        exact = torch.einsum("bhqk,bkhe,hed->bqkd", pattern.double(), values.double(), weight.double()).norm(dim=-1)
        heads = torch.einsum("bkhe,hed->bkhd", values, weight)
        gram = torch.einsum("bkhd,bkgd->bkhg", heads, heads)
        naive = torch.einsum("bhqk,bkhg,bgqk->bqk", pattern, gram, pattern).clamp_min(0).sqrt()
        below = torch.ones_like(exact, dtype=torch.bool).tril()

        def off(found, exact=exact, below=below):
            return ((found.double() - exact).abs() / exact)[below]

        assert heads.norm(dim=-1).min() > 100 * exact.max(), "the heads do not cancel: the case is not hard"
        assert off(naive).max() > 0.3, "the naive form copes: the case is not hard"
        assert off(norms["attn"][layer]).max() < 2e-5
        parts = tl_norms.decompose(cache, layer, "attn")
        assert off(parts.norms()).max() < 2e-5


def upcast(model, cache):
    """The same numbers, stored in float32."""
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in cache.items()}
    return ActivationCache(tensors, model.float())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name, kind", [(name, kind) for name in ("gpt2", "llama_gqa", "bert") for kind in KINDS])
def test_half_precision_is_computed_in_float32(name, kind, dtype):
    tiny = make(name, kind, dtype, fresh=True)
    cache = tiny.cache()
    assert cache["v", 0].dtype == dtype  # the pattern is cast behind its hook in TransformerLens 2
    norms = tl_norms.block_norms(cache, SCOPES)
    vectors = tl_norms.value_vectors(cache, 0)
    parts = [tl_norms.decompose(cache, 1, scope) for scope in SCOPES]
    for scope in SCOPES:
        assert norms[scope].dtype == norms.mixing_ratio(scope).dtype == torch.float32
        assert float(norms.error[scope].max()) < HALF[dtype]
    assert float(norms.error["attn"].max()) > 1e-5, "these activations are not rounded: nothing is tested"
    assert norms.head_norms.dtype == norms.attention.dtype == vectors.dtype == torch.float32
    for part in parts:
        assert part.total().dtype == part.vectors().dtype == part.norms().dtype == torch.float32
        assert torch.allclose(part.vectors().sum(2) + part.remainder, part.total(), atol=1e-5)
    wide = upcast(tiny.model, cache)  # from here on the model's own weights are float32
    expected = tl_norms.block_norms(wide, SCOPES, check=False)
    for scope in SCOPES:
        assert torch.allclose(norms[scope], expected[scope], rtol=1e-5, atol=1e-6)
    layers = reference.analyse(hugging_face(FAMILIES[name], torch.float64), tiny.tokens())
    for scope in SCOPES:  # and all of it is near the truth
        exact = torch.stack([layer.norms(scope) for layer in layers])
        assert (norms[scope] - exact).abs().max() < HALF[dtype] * exact.max()


class Allocations(TorchDispatchMode):
    """Records the size of every tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.sizes.append(value.numel())
        return out


@pytest.mark.parametrize("name, kind", [(name, kind) for name in ("gpt2", "llama_gqa", "bert") for kind in KINDS])
def test_no_tensor_of_all_pairs_of_vectors_is_ever_made(name, kind, monkeypatch):
    """Unless they are few: then forming them is the fastest way."""
    monkeypatch.setattr("tl_norms.linear.carry.terms.Sent.few", False)
    monkeypatch.setattr("tl_norms.joined_layers.few", lambda mixing: False)
    tiny = make(name, kind, torch.float32)
    cache = tiny.cache(tiny.tokens(batch=1, positions=N_CTX))
    pairs = N_CTX * N_CTX * D_MODEL
    pattern = N_CTX * N_CTX * N_HEADS
    mask = torch.ones(1, N_CTX, dtype=torch.long)
    calls = {
        "block_norms": lambda: tl_norms.block_norms(cache, SCOPES),
        "block_norms, mask": lambda: tl_norms.block_norms(cache, SCOPES, mask=mask),
        "value_norms": lambda: tl_norms.value_norms(cache),
        "weighted_value_norms": lambda: tl_norms.weighted_value_norms(cache),
        "decompose.norms": lambda: tl_norms.decompose(cache, 0, "attn_res_ln").norms(),
        "decompose.total": lambda: tl_norms.decompose(cache, 0, "attn_res_ln").total(),
        "decompose.vectors of a query": lambda: tl_norms.decompose(cache, 0, "attn_res").vectors(query=3),
    }
    for call, run in calls.items():
        with Allocations() as seen:
            run()
        assert len(seen.sizes) > 20 and max(seen.sizes) >= N_CTX * D_MODEL, f"{call}: the recorder saw nothing"
        joined = call == "weighted_value_norms" or call.startswith("block_norms")  # patterns of several layers
        stacked = N_LAYERS * pattern if joined else pattern
        assert max(seen.sizes) <= stacked < pairs, f"{call} made a tensor of {max(seen.sizes)} numbers"


def test_the_recorder_notices_a_plain_implementation():
    """The test above can fail: the vectors of all pairs are seen, by einsum and by `vectors()`."""
    tiny = make("gpt2", KINDS[0], torch.float32)
    cache = tiny.cache(tiny.tokens(batch=1, positions=N_CTX))
    vectors = tl_norms.value_vectors(cache, 0)
    with Allocations() as seen:
        torch.einsum("bhqk,bhkd->bqkd", cache["pattern", 0], vectors).norm(dim=-1)
    assert max(seen.sizes) >= N_CTX * N_CTX * D_MODEL
    with Allocations() as seen:
        tl_norms.decompose(cache, 0, "attn").vectors()
    assert max(seen.sizes) >= N_CTX * N_CTX * D_MODEL
