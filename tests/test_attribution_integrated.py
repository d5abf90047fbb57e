"""attribute(attention="integrated") against integrals of autograd on Hugging Face's own modules; baselines; edits."""

import held_reference
import integrated_reference
import pytest
import tiny
import torch

import tl_norms
from tl_norms import attribute, direct_attribution, logit, run_with_attribution
from tl_norms.blocks.activations import Activations
from tl_norms.model_map import hold_model
from tl_norms.plan import reader_of

CASES = [(name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_gqa", "llama_mqa_biased", "bert")]
TARGET = logit(7) - 2 * logit(11, at=3)


def named(logits):
    """The same target on Hugging Face's logits."""
    return logits[:, -1, 7] - 2 * logits[:, 3, 11]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    made = tiny.make(*request.param)
    tokens = made.tokens()
    run = held_reference.Run(made.hf, tokens)
    # Hugging Face's Llama computes norms, rotary embeddings and softmaxes in float32
    return made, made.cache(tokens), integrated_reference.integrated(run), 5e-6 if made.family.rms else 1e-10


def test_the_reference_gives_the_real_streams(case):
    _, _, reference, tolerance = case
    for number, layer in enumerate(reference.layers):
        made = layer(reference.streams[number]).detach()
        assert (made - reference.streams[number + 1]).abs().max() < 10 * tolerance * made.abs().max()


def test_streams_and_offsets_are_those_of_the_integrals(case):
    _, cache, reference, tolerance = case
    found = attribute(cache, TARGET, attention="integrated")
    for cut, x in enumerate(reference.streams):
        x = x.clone().requires_grad_()
        value = reference.value(x, cut, named)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        expected = (gradient * x).sum(-1).detach()
        scale = expected.abs().max()
        assert (found.stream[cut] - expected).abs().max() < tolerance * scale
        offset = (value.detach() - expected.sum(-1)).detach()  # affine: what is left is the offset
        assert (found.offset[cut] - offset).abs().max() < tolerance * 10 * max(scale, offset.abs().max())
    assert float(found.error.max()) < (2e-6 if tolerance > 1e-6 else 1e-12)
    assert all(nodes > 1 for nodes in found.nodes)


def test_queries_keys_values_logits_and_edges_are_derivatives(case):
    _, cache, reference, tolerance = case
    found = attribute(cache, TARGET, attention="integrated")
    for layer in range(tiny.N_LAYERS):
        x = reference.streams[layer]
        ways = [x.clone().requires_grad_() for _ in range(3)]
        ones = torch.ones_like(reference.layers[layer].pattern).requires_grad_()
        edges = torch.ones_like(ones).requires_grad_()
        value = reference.value(x, layer, named, ways=(layer, ways), logits=(layer, ones), edges=(layer, edges))
        *gradients, by_logit, by_edge = torch.autograd.grad(value.sum(), [*ways, ones, edges])
        scale = by_edge.abs().max()
        for name, gradient in zip(("queries", "keys", "values"), gradients, strict=True):
            expected = (gradient * x).sum(-1)
            assert (getattr(found, name)[layer] - expected).abs().max() < 2 * tolerance * max(
                scale, expected.abs().max()
            )
        assert (found.logits(layer) - by_logit).abs().max() < 2 * tolerance * scale
        assert (found.edges(layer) - by_edge).abs().max() < 2 * tolerance * scale
        both = (by_logit + by_edge).sum((-1, -2))
        assert (found.heads[layer] - both).abs().max() < 5 * tolerance * scale
        parts = found.queries[layer] + found.keys[layer] + found.values[layer] + found.bypass[layer]
        torch.testing.assert_close(parts.sum(-1), found.stream[layer].sum(-1), rtol=1e-9, atol=1e-9)


def test_the_held_layers_give_the_real_streams(case):
    made, cache, _, tolerance = case
    reader = reader_of(made.model)
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader)
    stack = hold_model(made.model, activations, reader, attention="integrated").stack
    for number in range(stack.n_layers):
        x, expected = stack.stream(number), stack.stream(number + 1)
        made_of = stack.layer(number).block.forward(x, offsets=True)[-1]
        assert (made_of - expected).abs().max() < tolerance * expected.abs().max()


def test_direct_attribution_adds_up_with_logits_by_key(case):
    _, cache, _, tolerance = case
    found = direct_attribution(cache, logit(7), attention="integrated")
    held = direct_attribution(cache, logit(7))
    total = found.embed + found.heads.sum((0, -1, -2)) + found.ffn.sum(0) + found.offset
    torch.testing.assert_close(total, found.value, rtol=1e-5, atol=1e-5)
    last = found.heads[-1].sum(-1) - held.heads[-1].sum(-1)
    assert last.abs().max() < 10 * tolerance * found.heads.abs().max()  # heads write what they write
    assert (found.heads - held.heads).abs().max() > 1e-3 * held.heads.abs().max()  # by key it differs


def gpt2(sharpness=1.0):
    made = tiny.make("gpt2", "bridge")
    with torch.no_grad():
        for block in made.hf.transformer.h:
            block.attn.c_attn.weight[:, : tiny.D_MODEL] *= sharpness
    return made


@pytest.fixture(scope="module")
def plain():
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridge")
    made = gpt2()
    return made, made.cache(made.tokens())


@pytest.mark.parametrize("sharpness", [20.0, 80.0])
def test_sharp_rows_add_up(sharpness):
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridge")
    made = gpt2()
    # a model of its own: weights are changed
    cache = tiny_sharp(made, sharpness)
    pattern = cache["blocks.1.attn.hook_pattern"]
    assert float(pattern.max()) > 0.999
    found = attribute(cache, TARGET, attention="integrated")
    assert float(found.error.max()) < 1e-10
    assert min(found.nodes) > 15
    for layer in found.layers:
        found.logits(layer)


def tiny_sharp(made, sharpness):
    import copy

    hf = copy.deepcopy(made.hf)
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_attn.weight[:, : tiny.D_MODEL] *= sharpness
    model = tiny.boot(hf, "GPT2LMHeadModel")
    return model.run_with_cache(made.tokens())[1]


def test_a_changed_pattern_is_told_where_softmaxes_are_integrated(plain):
    made, _ = plain

    def uniform(tensor, hook):
        return torch.ones_like(tensor).tril() / torch.ones_like(tensor).tril().sum(-1, keepdim=True)

    with made.model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", uniform)]):
        cache = made.model.run_with_cache(made.tokens())[1]
    assert float(attribute(cache, TARGET).error.max()) < 1e-10
    with pytest.raises(tl_norms.DecompositionError, match=r"blocks.0.attn: the pattern rebuilt"):
        attribute(cache, TARGET, attention="integrated")


def test_padding_on_the_left_changes_nothing():
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridge")
    made = tiny.make("llama_gqa", "bridge")
    tokens = made.tokens()[:1]
    padded = torch.cat([torch.zeros(1, 2, dtype=tokens.dtype), tokens], 1)
    mask = torch.cat([torch.zeros(1, 2, dtype=torch.long), torch.ones_like(tokens)], 1)
    with torch.no_grad():
        cache = made.model.run_with_cache(padded, attention_mask=mask)[1]
    found = attribute(cache, logit(7), attention="integrated", mask=mask)
    alone = attribute(made.cache(tokens), logit(7), attention="integrated")
    assert float(found.error.max()) < 2e-6
    torch.testing.assert_close(found.tokens[:, 2:], alone.tokens, rtol=1e-4, atol=1e-5)
    assert found.tokens[:, :2].abs().max() == 0


@pytest.mark.parametrize("attention", ["held", "integrated"])
def test_a_baseline_moves_its_own_value_to_the_offset(plain, attention):
    made, cache = plain
    found = attribute(cache, TARGET, attention=attention)
    against = attribute(cache, TARGET, attention=attention, baseline=5)
    with torch.no_grad():
        n = cache["embed.hook_in"].shape[-1]
        reference = made.hf.transformer.wte.weight[5] + made.hf.transformer.wpe.weight[:n]
    own = attribute(cache, TARGET, attention=attention, baseline=reference)
    torch.testing.assert_close(own.tokens, against.tokens, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        against.tokens.sum(-1) + against.offset[0], found.tokens.sum(-1) + found.offset[0], rtol=1e-10, atol=1e-10
    )
    assert (against.tokens - found.tokens).abs().max() > 1e-2
    assert float(against.error.max()) < 1e-10
    torch.testing.assert_close(against.stream[1:], found.stream[1:])
    zero = attribute(cache, TARGET, attention=attention, baseline=torch.zeros(tiny.D_MODEL))
    torch.testing.assert_close(zero.tokens, found.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(baseline=10**6), "tokens 0 to"),
        (dict(baseline=torch.zeros(3)), "expected \\[d_model\\]"),
        (dict(baseline=True), "expected a token"),
        (dict(attention="rolled"), "'held' or 'integrated'"),
        (dict(ff="all"), "'ig', 'half', 'gate' or 'drop'"),
        (dict(edits="keep"), "'refuse', 'replace' or 'add'"),
    ],
)
def test_options_that_do_not_exist_are_refused(plain, options, message):
    with pytest.raises(tl_norms.UnknownOptionError, match=message):
        attribute(plain[1], TARGET, **options)


def test_logits_of_held_patterns_are_refused(plain):
    with pytest.raises(tl_norms.UnknownOptionError, match="integrated"):
        attribute(plain[1], TARGET).logits(0)


def test_a_run_gives_what_a_cache_gives(plain):
    made, cache = plain
    options = dict(attention="integrated", baseline=3)
    _, found = run_with_attribution(made.model, made.tokens(), target=TARGET, **options)
    torch.testing.assert_close(found.tokens, attribute(cache, TARGET, **options).tokens, rtol=1e-10, atol=1e-10)


def test_dropped_feed_forwards_pass_nothing(plain):
    _, cache = plain
    found = attribute(cache, TARGET, ff="drop")
    assert float(found.error.max()) < 1e-10
    assert (found.tokens - attribute(cache, TARGET).tokens).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["held", "integrated"])
@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_in", "blocks.0.mlp.hook_out", "blocks.0.attn.hook_v", "blocks.1.attn.o.hook_in"]
)
def test_runs_that_hooks_changed_add_up(plain, hook, mode, attention):
    made, _ = plain

    def change(tensor, hook):
        tensor = tensor.clone()
        tensor[:, 2] = 0
        tensor[:, 4] = tensor[:, 4] + 0.3
        return tensor

    with made.model.hooks(fwd_hooks=[(hook, change)]):
        cache = made.model.run_with_cache(made.tokens())[1]
    with pytest.raises(tl_norms.DecompositionError):
        attribute(cache, TARGET, attention=attention)
    found = attribute(cache, TARGET, edits=mode, attention=attention)
    assert float(found.error.max()) < 1e-10
    assert found.edits and {position for edit in found.edits for _, position in edit.positions} == {2, 4}
    found.edges(0), found.edges(1)
