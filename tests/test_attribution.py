"""attribute against the held map of Hugging Face's own model, differentiated by autograd; and what it refuses."""

import pytest
import torch

import tl_norms
from tl_norms.attribution import attribute, attribution_hooks, direct_attribution, run_with_attribution, top_target
from tl_norms.targets import TargetError, direction, logit, probability

import held_reference
import tiny

CASES = [(name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_mha", "llama_gqa", "llama_mqa_biased", "bert")]
TARGET = logit(7) - 2 * logit(11, at=3)


def named(logits):
    """The same target on Hugging Face's logits."""
    return logits[:, -1, 7] - 2 * logits[:, 3, 11]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    made = tiny.make(*request.param)
    tokens = made.tokens()
    run = held_reference.Run(made.hf, tokens)
    return made, made.cache(tokens), held_reference.held(run), run


def test_streams_offsets_and_tokens_are_those_of_the_held_map(case):
    made, cache, reference, run = case
    found = attribute(cache, TARGET)
    torch.testing.assert_close(found.value, named(run.logits), rtol=1e-6, atol=1e-6)
    for cut in range(tiny.N_LAYERS + 1):
        x = reference.streams[cut].clone().requires_grad_()
        value = reference.value(x, cut, named)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        expected = (gradient * x).sum(-1).detach()
        scale = expected.abs().max()
        assert (found.stream[cut] - expected).abs().max() < 1e-10 * scale
        offset = reference.value(torch.zeros_like(x), cut, named).detach()  # an affine map at zero
        assert (found.offset[cut] - offset).abs().max() < 1e-10 * max(scale, offset.abs().max())
    assert torch.equal(found.tokens, found.stream[0])
    assert float(found.error.max()) < (1e-6 if made.family.rms else 1e-12)


def test_edges_heads_and_feed_forwards_are_derivatives_of_the_held_map(case):
    _, cache, reference, _ = case
    found = attribute(cache, TARGET)
    for layer in range(tiny.N_LAYERS):
        x = reference.streams[layer]
        ones = torch.ones_like(reference.layers[layer].pattern).requires_grad_()
        factors = torch.ones(x.shape[:2], dtype=x.dtype).requires_grad_()
        value = reference.value(x, layer, named, edges=(layer, ones), ffn=(layer, factors))
        edges, ffn = torch.autograd.grad(value.sum(), [ones, factors])
        scale = edges.abs().max()
        assert (found.edges(layer) - edges).abs().max() < 2e-7 * scale  # values are cached: float32 norms in Llama
        assert (found.ffn[layer] - ffn).abs().max() < 2e-7 * max(scale, ffn.abs().max())
        assert (found.heads[layer] - edges.sum((-1, -2))).abs().max() < 5e-7 * scale


def test_cutting_one_edge_changes_the_target_by_that_edge(case):
    _, cache, reference, _ = case
    found = attribute(cache, TARGET)
    for layer, head, query, key in ((0, 0, 2, 1), (1, 3, 6, 4), (1, 1, 3, 3)):
        x = reference.streams[layer]
        whole = reference.value(x, layer, named)
        without = torch.ones_like(reference.layers[layer].pattern)
        without[:, head, query, key] = 0
        change = (whole - reference.value(x, layer, named, edges=(layer, without))).detach()
        edges = found.edges(layer)
        assert (edges[:, head, query, key] - change).abs().max() < 2e-7 * edges.abs().max()


def test_float64_norms_make_edges_exact_too(monkeypatch):
    """Llama with its norm computed in the model's own precision: everything to rounding."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def exact(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt() * self.weight

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridge")
    made = tiny.make("llama_gqa", "bridge", fresh=True)
    tokens = made.tokens()
    reference = held_reference.held(held_reference.Run(made.hf, tokens))
    found = attribute(made.cache(tokens), TARGET)
    assert float(found.error.max()) < 1e-12
    for layer in range(tiny.N_LAYERS):
        ones = torch.ones_like(reference.layers[layer].pattern).requires_grad_()
        value = reference.value(reference.streams[layer], layer, named, edges=(layer, ones))
        (edges,) = torch.autograd.grad(value.sum(), ones)
        assert (found.edges(layer) - edges).abs().max() < 1e-10 * edges.abs().max()
