"""attribute against the held map of Hugging Face's own model, differentiated by autograd; and what it refuses."""

import held_reference
import pytest
import tiny
import torch

import tl_norms
import tl_norms.held_run
from tl_norms import attribute, direct_attribution, direction, logit, probability, run_with_attribution, top_target
from tl_norms.blocks.activations import Activations
from tl_norms.blocks.values import value_paths
from tl_norms.credit_checks import raise_if_off, relative_error
from tl_norms.linear.carry.direction import back_through
from tl_norms.linear.operators import applied
from tl_norms.model_map import hold_model
from tl_norms.plan import reader_of
from tl_norms.targets import TargetError

CASES = [
    (name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_mha", "llama_gqa", "llama_mqa_biased", "bert")
]
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
    # Hugging Face's Llama computes norms in float32, TransformerLens' own does not: their streams differ
    tolerance = 2e-6 if made.family.rms and made.kind == "hooked" else 1e-10
    torch.testing.assert_close(found.value, named(run.logits), rtol=1e-6, atol=1e-6)
    for cut in range(tiny.N_LAYERS + 1):
        x = reference.streams[cut].clone().requires_grad_()
        value = reference.value(x, cut, named)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        expected = (gradient * x).sum(-1).detach()
        scale = expected.abs().max()
        assert (found.stream[cut] - expected).abs().max() < tolerance * scale
        offset = reference.value(torch.zeros_like(x), cut, named).detach()  # an affine map at zero
        assert (found.offset[cut] - offset).abs().max() < tolerance * max(scale, offset.abs().max())
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
        assert (found.edges(layer) - edges).abs().max() < 2e-6 * scale  # values are cached: float32 norms in Llama
        assert (found.ffn[layer] - ffn).abs().max() < 2e-6 * max(scale, ffn.abs().max())
        assert (found.heads[layer] - edges.sum((-1, -2))).abs().max() < 5e-6 * scale


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
        assert (edges[:, head, query, key] - change).abs().max() < 2e-6 * edges.abs().max()


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


# ---- the held map itself


def held_map(made, cache):
    activations = Activations(cache.cache_dict, cache.has_batch_dim, reader_of(made.model))
    return hold_model(made.model, activations, keep=True)


def test_the_map_gives_the_streams_and_is_affine(case):
    made, cache, _, _ = case
    whole = held_map(made, cache)
    start = whole.stack.stream(0)

    def through(x):
        for number in range(whole.stack.n_layers):
            x = whole.stack.layer(number).block.forward(x, offsets=True)[-1]
        return applied(whole.head.before, x)

    x = start
    for number in range(whole.stack.n_layers):
        x = whole.stack.layer(number).block.forward(x, offsets=True)[-1]
        real = whole.stack.stream(number + 1)
        assert (x - real).abs().max() < (1e-6 if made.family.rms else 1e-12) * real.abs().max()
    directions = tiny.waves((3, *start.shape), 0.2)

    def along(steps):
        return through(start + torch.einsum("s,s...->...", steps, directions))[:, -1].sum()

    hessian = torch.autograd.functional.hessian(along, torch.zeros(3, dtype=start.dtype))
    assert hessian.abs().max() == 0


def test_a_layer_carried_back_is_the_transpose_of_the_layer_carried_forward(case):
    made, cache, _, _ = case
    whole = held_map(made, cache)
    for number in range(whole.stack.n_layers):
        layer, x = whole.stack.layer(number), whole.stack.stream(number)
        luggage, g = tiny.waves((2, *x.shape), 0.3), tiny.waves((4, *x.shape), 0.7)
        there = torch.einsum("tbqd,sbqd->ts", g, layer.block.forward(luggage)[-1])
        back = torch.einsum("tbqd,sbqd->ts", back_through(layer, g, x).entering, luggage)
        torch.testing.assert_close(there, back, rtol=1e-10, atol=1e-10)


# ---- what the result holds


def test_several_targets_get_a_leading_axis_and_equal_single_ones(case):
    _, cache, _, _ = case
    targets = [logit(7), logit(11, at=3), TARGET, direction(tiny.waves((tiny.D_MODEL,), 0.1), layer=1, at=2)]
    many = attribute(cache, targets)
    assert many.value.shape == (4, 2) and many.tokens.shape == (4, 2, 7) and many.stream.shape == (4, 3, 2, 7)
    assert many.heads.shape == (4, 2, 2, 4) and many.ffn.shape == many.bypass.shape == (4, 2, 2, 7)
    assert many.offset.shape == (4, 3, 2) and many.error.shape == (4, 3) and many.edges(0).shape == (4, 2, 4, 7, 7)
    for number, target in enumerate(targets):
        one = attribute(cache, target)
        assert one.value.shape == (2,) and one.error.shape == (3,)
        for name in ("value", "tokens", "stream", "offset", "heads", "ffn", "bypass"):
            torch.testing.assert_close(getattr(many, name)[number], getattr(one, name), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(many.edges(1)[number], one.edges(1), rtol=1e-9, atol=1e-11)
    combined = many.tokens[0] - 2 * many.tokens[1]
    torch.testing.assert_close(many.tokens[2], combined, rtol=1e-9, atol=1e-11)


def test_a_cut_at_the_values_adds_up_and_so_does_the_direct_attribution(case):
    _, cache, _, _ = case
    found = attribute(cache, TARGET)
    direct = direct_attribution(cache, TARGET)
    parts = direct.embed + direct.heads.sum((0, -1, -2)) + direct.ffn.sum(0) + direct.offset
    torch.testing.assert_close(parts, found.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.heads[1], found.edges(1).sum((-1, -2)), rtol=1e-6, atol=1e-9)


def test_direct_attribution_is_what_writers_put_into_the_last_stream():
    """GPT-2: every writer's vector itself, centred and scaled by the last norm, times the unembedding."""
    made = tiny.make("gpt2", tiny.KINDS[0])
    cache = made.cache()
    found = direct_attribution(cache, logit(7))
    last = cache["resid_post", tiny.N_LAYERS - 1][:, -1].double()
    norm, head = made.hf.transformer.ln_f, made.hf.lm_head.weight[7].double()
    scale = ((last - last.mean(-1, keepdim=True)).pow(2).mean(-1) + norm.eps).sqrt()

    def along(vector):
        return ((vector - vector.mean(-1, keepdim=True)) / scale[:, None] * norm.weight.double()) @ head

    torch.testing.assert_close(found.embed, along(cache["resid_pre", 0][:, -1]).detach(), rtol=1e-9, atol=1e-10)
    for layer in range(tiny.N_LAYERS):
        torch.testing.assert_close(
            found.ffn[layer], along(cache["mlp_out", layer][:, -1]).detach(), rtol=1e-9, atol=1e-10
        )
        values, pattern = tl_norms.value_vectors(cache, layer), cache["pattern", layer]
        for h in range(tiny.N_HEADS):
            for j in range(7):
                wrote = along(pattern[:, h, -1, j, None] * values[:, h, j]).detach()
                torch.testing.assert_close(found.heads[layer, :, h, j], wrote, rtol=1e-9, atol=1e-10)


def test_directions_at_layers_and_weighted_positions(case):
    _, cache, _, _ = case
    probe = tiny.waves((tiny.D_MODEL,), 0.9)
    stream = tl_norms.held_run.map_of(cache).stack.stream(1)
    weights = torch.full((7,), 1 / 7, dtype=torch.float64)
    found = attribute(cache, direction(probe, layer=1, at=weights))
    torch.testing.assert_close(found.value, (stream @ probe).mean(1))
    torch.testing.assert_close(found.stream[1], (stream @ probe) / 7)
    assert not found.stream[2].any() and torch.equal(found.offset[2], found.value), "nothing is ahead above its layer"
    torch.testing.assert_close(found.tokens.sum(-1) + found.offset[0], found.value, rtol=1e-6, atol=1e-6)
    several = attribute(cache, direction(probe, layer=1, at=[0, 2, 2]))
    torch.testing.assert_close(several.value, (stream[:, 0] + 2 * stream[:, 2]) @ probe)


def test_a_cache_without_batch_axis_gives_results_without_one():
    made = tiny.make("gpt2", tiny.KINDS[0])
    with torch.no_grad():
        cache = made.model.run_with_cache(made.tokens()[:1], remove_batch_dim=True)[1]
    whole = attribute(made.cache(made.tokens()[:1]), TARGET)
    found = attribute(cache, TARGET)
    assert found.value.ndim == 0 and found.tokens.shape == (7,) and found.edges(0).shape == (4, 7, 7)
    torch.testing.assert_close(found.stream, whole.stream[:, 0])
    assert attribute(cache, [TARGET, TARGET]).stream.shape == (2, 3, 7)


def test_required_hooks_are_enough_and_a_run_gives_the_same(case):
    made, cache, _, _ = case
    names = tl_norms.required_hooks(made.model, target=TARGET)
    assert len(names) < len(cache.cache_dict)
    found = attribute(made.cache(names_filter=names), TARGET)
    whole = attribute(cache, TARGET)
    torch.testing.assert_close(found.stream, whole.stream, rtol=1e-9, atol=1e-10)
    _, during = run_with_attribution(made.model, made.tokens(), target=TARGET)
    torch.testing.assert_close(during.edges(1), whole.edges(1), rtol=1e-9, atol=1e-10)


def test_padding_gives_nothing_and_positions_count_from_the_last_real_token():
    made = tiny.make("bert", tiny.KINDS[0])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    found = attribute(made.cache(mask=mask), logit(5), mask=mask)
    alone = attribute(made.cache(made.tokens()[1:, :4]), logit(5))
    assert not found.tokens[1, 4:].any() and not found.edges(0)[1, :, :, 4:].any()
    torch.testing.assert_close(found.tokens[1, :4], alone.tokens[0], rtol=1e-6, atol=1e-8)
    with pytest.raises(TargetError, match="padding"):
        attribute(made.cache(mask=mask), logit(5, at=5), mask=mask)


def test_a_run_gives_its_masks_to_the_model():
    made = tiny.make("bert", tiny.KINDS[0])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    whole = attribute(made.cache(mask=mask), logit(5), mask=mask)
    output, during = run_with_attribution(made.model, made.tokens(), target=logit(5), mask=mask)
    torch.testing.assert_close(during.tokens, whole.tokens, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(during.value, output[torch.arange(2), [6, 3], 5].to(during.value))


def test_top_target_is_prediction_against_runner_up():
    made = tiny.make("gpt2", tiny.KINDS[0])
    tokens = made.tokens()[:1]
    first, second = made.hf(tokens).logits[0, 2].topk(2).indices.tolist()
    found = attribute(made.cache(tokens), top_target(made.cache(tokens), at=2))
    torch.testing.assert_close(found.value, made.hf(tokens).logits[:, 2, first] - made.hf(tokens).logits[:, 2, second])
    with pytest.raises(TargetError, match="rows"):
        top_target(made.cache())


def test_tables_name_heads_and_tokens():
    pandas = pytest.importorskip("pandas")
    made = tiny.make("gpt2", tiny.KINDS[0])
    strings = tuple("the keys to the old cabinet are".split())
    found = attribute(made.cache(made.tokens()[:1]), TARGET, tokens=strings)
    edges = found.top(5)
    whole = torch.stack([found.edges(layer)[0] for layer in range(tiny.N_LAYERS)])
    best = whole.abs().argmax()
    layer, head, query, key = (int(i) for i in torch.unravel_index(best, whole.shape))
    assert edges[0][:3] == (f"L{layer}H{head}", strings[query], strings[key])
    assert edges[0][3] == pytest.approx(float(whole.flatten()[best]))
    assert "L" in repr(edges) and "<table>" in edges._repr_html_() and len(edges.to_dataframe()) == 5
    heads = found.top(3, "heads")
    assert heads[0][0] == "L{}H{}".format(
        *(int(i) for i in torch.unravel_index(found.heads.abs().argmax(), (2, 1, 4))[::2])
    )
    assert found.top(2, "tokens")[0][0] in strings and found.top(2, "ffn")[0][0] in ("L0", "L1")
    table = found.to_dataframe()
    assert isinstance(table, pandas.DataFrame) and len(table) == 3 * 7
    assert "logit(7) - 2 * logit(11) at 3" in repr(found) and "error" in repr(found)
    with pytest.raises(tl_norms.UnknownOptionError, match="kind"):
        found.top(3, "words")


# ---- what is refused


def test_bad_targets_are_refused(case):
    made, cache, _, _ = case
    width = tiny.D_MODEL
    for target, match in [
        (logit(tiny.VOCAB), "outputs 0 to"),
        (logit(-1), "outputs 0 to"),
        (logit(3, at=7), "positions 0 to 6"),
        (logit(3, at=-8), "positions 0 to 6"),
        (logit(" are"), "tokenizer"),
        (direction(torch.ones(width - 1)), "stream has 32"),
        (direction(torch.ones(width), layer=2), "layers 0 to 1"),
        (direction(torch.ones(width), layer=-3), "layers 0 to 1"),
        (direction(torch.ones(width), at=torch.ones(6)), "6"),
        ("are", "expected a target"),
        ([], "no targets"),
    ]:
        with pytest.raises(TargetError, match=match):
            attribute(cache, target)
    for make, match in [
        (lambda: logit(True), "string or a vocabulary id"),
        (lambda: logit(3, at=1.5), "position"),
        (lambda: direction(torch.ones(2, width)), "d_model"),
        (lambda: direction(torch.full((width,), float("nan"))), "NaN"),
        (lambda: probability(" are"), "difference of logits"),
    ]:
        with pytest.raises(TargetError, match=match):
            make()
    with pytest.raises(tl_norms.UnknownOptionError, match="ff"):
        attribute(cache, TARGET, ff="magic")
    with pytest.raises(tl_norms.UnknownLayerError, match="layers 0 to 1"):
        attribute(cache, TARGET).edges(2)


def test_a_cache_without_a_stream_in_between_is_refused(case):
    made, _, _, _ = case
    names = tl_norms.required_hooks(made.model, target=TARGET)
    for gone in [name for name in names if "hook_in" in name or "resid_pre" in name][:2]:
        partial = made.cache(names_filter=[name for name in names if name != gone])
        if gone in partial.cache_dict or "embed" in gone:
            continue
        with pytest.raises(tl_norms.MissingActivationError):
            attribute(partial, TARGET)


@pytest.mark.parametrize("hook", ["hook_out", "attn.hook_out", "mlp.hook_out"])
def test_a_run_that_a_hook_edited_is_refused(hook):
    made = tiny.make("gpt2", tiny.KINDS[0])
    name = {"hook_out": "blocks.0.hook_resid_post"}.get(hook, f"blocks.0.hook_{hook.split('.')[0]}_out")

    def edit(tensor, hook):
        return tensor * 1.3

    with torch.no_grad(), made.model.hooks(fwd_hooks=[(name, edit)]):
        cache = made.model.run_with_cache(made.tokens())[1]
    with pytest.raises(tl_norms.DecompositionError):
        attribute(cache, TARGET)


def test_weights_changed_after_the_run_are_refused():
    for change in ("attn.W_V", "attn.W_O", "mlp.W_out", "ln_final"):
        made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
        cache = made.cache()
        if change == "ln_final" and "unembed.hook_out" not in cache.cache_dict:
            continue  # the run did not keep its outputs: the head as it is now is asked for them
        with torch.no_grad():
            if change == "ln_final":
                made.model.ln_final.w[3] *= 1.5
            else:
                part, weight = change.split(".")
                getattr(getattr(made.model.blocks[1], part), weight)[..., 2] *= 1.5
        with pytest.raises((tl_norms.DecompositionError, tl_norms.UnsupportedArchitectureError)):
            attribute(cache, TARGET)


def test_edges_whose_values_were_written_to_since_are_refused():
    made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
    cache = made.cache()
    found = attribute(cache, TARGET)
    cache["pattern", 1][:, 2] *= 0.5
    with pytest.raises(tl_norms.DecompositionError, match="cut at the values"):
        found.edges(1)


def test_nan_in_a_contribution_fails():
    error = relative_error(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[[float("nan"), 1.0]]]))
    with pytest.raises(tl_norms.DecompositionError):
        raise_if_off(error, 1.0, "cut 0", ("a",))


def test_a_classifier_is_attributed_through_its_pooler_to_its_classes():
    """Next-sentence prediction: dense and tanh of the first position, then the classes."""
    transformers = pytest.importorskip("transformers")
    if "bridge" not in tiny.KINDS:
        pytest.skip("this TransformerLens has no bridge")
    config = transformers.BertConfig(**tiny.FAMILIES["bert"].options)
    config._attn_implementation = "eager"
    hf = transformers.BertForNextSentencePrediction(config)
    tiny.fill(hf)
    hf = hf.double().eval()
    tokens = tiny.Tiny.tokens()
    with torch.no_grad():
        logits = hf(tokens).logits
        model = tiny.boot(hf, "BertForMaskedLM")
        cache = model.run_with_cache(tokens)[1]
    found = attribute(cache, tl_norms.class_logit(1) - tl_norms.class_logit(0))
    torch.testing.assert_close(found.value, logits[:, 1] - logits[:, 0])
    assert float(found.error.max()) < 1e-12 and found.tokens.shape == (2, 7)
    torch.testing.assert_close(found.tokens.sum(-1) + found.offset[0], found.value)
    assert not found.stream[2, :, 1:].any() and found.tokens[:, 1:].any(), "the head reads the first position only"
    for target in (logit(1), tl_norms.class_logit(2)):
        with pytest.raises(TargetError, match="class|outputs 0 to 1"):
            attribute(cache, target)


def test_a_model_that_is_no_classifier_has_no_classes(case):
    with pytest.raises(TargetError, match="no classifier"):
        attribute(case[1], tl_norms.class_logit(1))


def test_minilm_has_directions_only(minilm):
    with torch.no_grad():
        cache = minilm.run_with_cache("The keys to the cabinet")[1]
    with pytest.raises(TargetError, match="no head"):
        attribute(cache, logit(5))
    weights = torch.full((7,), 1 / 7)
    found = attribute(cache, direction(torch.ones(384), at=weights))
    assert float(found.error.max()) < 1e-5 and found.token_strings[0][2] == "keys"


def test_a_model_whose_weights_have_changed_is_read_again():
    """Values from another place after the change: what was decided before would be refused."""
    made = tiny.make("llama_gqa", tiny.KINDS[0], fresh=True)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            if "norm" in name or "ln" in name:
                parameter.fill_(1.0)
    fresh = attribute(made.cache(), TARGET)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.1).add_(0.03 * torch.sin(torch.arange(parameter.numel())).reshape(parameter.shape))
    trained = attribute(made.cache(), TARGET)
    assert float(fresh.error.max()) < 1e-6 and float(trained.error.max()) < 1e-6
    assert (fresh.tokens - trained.tokens).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in ("gpt2", "llama_gqa")])
def test_a_target_with_a_token_for_every_row(name, kind):
    made = tiny.make(name, kind)
    tokens = made.tokens()
    cache, pairs = made.cache(tokens), [(7, 11), (3, 7)]
    found = attribute(cache, logit([a for a, _ in pairs]) - 2 * logit([b for _, b in pairs]))
    direct = direct_attribution(cache, logit([a for a, _ in pairs]))
    for row, (good, bad) in enumerate(pairs):
        alone = attribute(cache, logit(good) - 2 * logit(bad))
        for field in ("value", "tokens", "stream", "offset"):
            both = [getattr(part, field) for part in (found, alone)]
            axis = 0 if field in ("value", "tokens") else 1
            torch.testing.assert_close(both[0].select(axis, row), both[1].select(axis, row), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(direct.value[row], direct_attribution(cache, logit(good)).value[row])
    assert abs(float(found.value[0] - attribute(cache, logit(3) - 2 * logit(7)).value[0])) > 1e-3
    with pytest.raises(TargetError, match="names 3 tokens, one for every row; this run has 2 rows"):
        attribute(cache, logit([1, 2, 3]))
    for bad in ([], [1, True], [1.5]):
        with pytest.raises(TargetError, match="a string or a vocabulary id"):
            logit(bad)


@pytest.mark.skipif("bridge" not in tiny.KINDS, reason="of bridges")
@pytest.mark.parametrize("stretch", [0.5, 1, 2, 3])
def test_half_precision_gives_the_numbers_of_its_weights(stretch):
    """bfloat16 does not tell gains of 1.02 from one, but it does tell an RMS norm from a layer norm, and scales."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        source = tiny.hugging_face(tiny.FAMILIES["llama_gqa"], torch.float32)
        for name, parameter in source.named_parameters():
            if parameter.ndim == 1:
                parameter.data = 1 + 0.02 * tiny.waves(tuple(parameter.shape), len(name)).float()
            elif "embed" in name:  # means so small that centering changes little more than rounding
                parameter.data += 0.02 - parameter.data.mean(-1, keepdim=True)
            elif "q_proj" in name or "k_proj" in name:
                parameter.data *= stretch
        model = tiny.boot(source.bfloat16().to(dtype), "LlamaForCausalLM")  # the same numbers in both
        first = value_paths(reader_of(model))["blocks.0.attn"].steps[0]
        assert not first.kind.center and first.kind.gain == "weight"
        with torch.no_grad():
            _, cache = model.run_with_cache(tiny.Tiny.tokens(1, 12))
        target = logit(7) - logit(9)
        found.append([attribute(cache, target), attribute(cache, target, attention="integrated")])
    for half, single in zip(*found, strict=True):
        assert float(half.error.max()) < 5e-2
        torch.testing.assert_close(half.tokens, single.tokens, rtol=0, atol=0.1 * float(single.tokens.abs().max()))
