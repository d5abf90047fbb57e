"""propagate(attention="integrated") against one pass of autograd's integrals per token; backward; budgets; edits."""

import held_reference
import integrated_reference
import pytest
import tiny
import torch
from test_propagation import budget_of, close, one_by_one

import tl_norms
from tl_norms import attribute, logit, propagate, run_with_propagation
from tl_norms.linear.carry import forward
from tl_norms.walk import Walk

# torch's own forward-mode rules, imported when they are first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
CASES = [(name, kind) for name, kind in tiny.CASES if name in ("gpt2", "llama_gqa", "llama_mqa_biased", "bert")]
N = 7


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    made = tiny.make(*request.param)
    tokens = made.tokens()
    run = held_reference.Run(made.hf, tokens)
    # Hugging Face's Llama computes norms, rotary embeddings and softmaxes in float32
    return made, made.cache(tokens), integrated_reference.integrated(run), 5e-6 if made.family.rms else 1e-10


def test_vectors_norms_and_remainders_are_those_of_one_pass_per_token(case):
    _, cache, reference, tolerance = case
    vectors, nothing = one_by_one(reference)
    found = propagate(cache, attention="integrated")
    assert close(found.norms, vectors.norm(dim=-1), tolerance)
    assert close(found.remainder_norms, nothing.norm(dim=-1), tolerance, vectors.norm(dim=-1).max())
    assert close(found.vectors(-1), vectors[-1], tolerance)
    assert float(found.error.max()) < max(tolerance / 5, 1e-12)
    assert found.attention == "integrated" and "softmaxes integrated" in repr(found)
    held = propagate(cache)
    assert not close(found.norms, held.norms, 1e-2) and "integrated" not in repr(held)


@pytest.mark.parametrize("start", [0, 1])
def test_forward_equals_backward(case, start):
    _, cache, _, _ = case
    found = propagate(cache, attention="integrated", start=start)
    for token, at in ((7, -1), (11, 3)):
        expected = attribute(cache, logit(token, at=at), attention="integrated").stream[start]
        assert close(found.logits(token, at=at), expected, 1e-10)


def test_causal_models_never_compute_positions_before_the_source(case):
    made, cache, _, _ = case
    whole, least = propagate(cache, attention="integrated"), budget_of(cache, attention="integrated")
    walk = Walk(whole._model_map, 0, tiny.N_LAYERS - 1)
    assert walk.causal == (not made.family.post_norm)
    for budget in (least, int(2.5 * least)):
        found = propagate(cache, attention="integrated", max_memory=budget)
        torch.testing.assert_close(found.norms, whole.norms, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.logits(5), whole.logits(5), rtol=1e-10, atol=1e-12)
    for chunk in walk.chunks(range(N), least):
        assert chunk.first == (chunk.sources[0] if walk.causal else 0)
        assert all(x.shape[2] == N - chunk.first for _, x in walk.carried(chunk))
    if walk.causal:
        assert not whole.norms.triu(1).any()


def test_the_budget_is_kept(case):
    """Bytes of tensors that one source's walk makes and has alive at once."""
    _, cache, _, _ = case
    found = propagate(cache, attention="integrated")
    walk = Walk(found._model_map, 0, tiny.N_LAYERS - 1)
    chunk = next(walk.chunks(range(N), budget_of(cache, attention="integrated")))
    for _ in walk.carried(chunk):
        pass
    with tiny.Alive() as alive:
        for _ in walk.carried(chunk):
            pass
    nodes = max(layer.attention.nodes for layer in walk.layers)
    at_nodes = 3 * found.norms.element_size() * tiny.N_HEADS * 2 * N * N * nodes  # the softmax at every node, in pieces
    assert alive.peak <= walk.bytes_of(0, N) + at_nodes


def test_keys_before_the_source_are_attended_to(case, monkeypatch):
    """A source moves its own query's logits of all keys: cutting them off is noticed."""
    made, cache, _, _ = case
    if made.family.post_norm:
        pytest.skip("every position is computed")
    least, whole = budget_of(cache, attention="integrated"), forward._asked_from

    def blind(operator, first):
        cut = whole(operator, first)
        keys = cut.k.clone()
        keys[:, :first] = 0
        return forward.replace(cut, k=keys)

    monkeypatch.setattr(forward, "_asked_from", blind)
    with pytest.raises(tl_norms.DecompositionError, match="after layer"):
        propagate(cache, attention="integrated", max_memory=least)


def test_padding_gives_nothing_and_gets_nothing():
    for name in ("bert", "gpt2"):
        made = tiny.make(name, tiny.KINDS[0])
        mask = torch.ones(2, N, dtype=torch.long)
        mask[1, 4:] = 0
        found = propagate(made.cache(mask=mask), mask=mask, attention="integrated")
        alone = propagate(made.cache(made.tokens()[1:, :4]), attention="integrated")
        assert not found.norms[:, 1, 4:].any() and not found.norms[:, 1, :, 4:].any()
        torch.testing.assert_close(found.norms[:, 1, :4, :4], alone.norms[:, 0], rtol=1e-6, atol=1e-8)


def test_a_run_gives_what_a_cache_gives(case):
    made, cache, _, _ = case
    whole = propagate(cache, attention="integrated", ff="drop", measure="share")
    options = dict(attention="integrated", ff="drop", measure="share", layers=1, progress=False)
    _, during = run_with_propagation(made.model, made.tokens(), **options)
    torch.testing.assert_close(during.norms[0], whole.norms[1], rtol=1e-9, atol=1e-10)


def test_a_run_passes_the_mask_on():
    made = tiny.make("gpt2", tiny.KINDS[0])
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 4:] = 0
    expected = propagate(made.cache(mask=mask), mask=mask)
    _, found = run_with_propagation(made.model, made.tokens(), mask=mask)
    torch.testing.assert_close(found.norms, expected.norms)


@pytest.mark.parametrize("rule", ["half", "gate", "drop"])
@pytest.mark.parametrize("attention", ["held", "integrated"])
def test_every_rule_is_complete_and_equals_its_attribution(rule, attention):
    cache = tiny.make("llama_gqa", tiny.KINDS[0]).cache()
    found = propagate(cache, ff=rule, attention=attention)
    expected = attribute(cache, logit(7), ff=rule, attention=attention).tokens
    assert close(found.logits(7), expected, 1e-10)
    assert not close(found.norms, propagate(cache, attention=attention).norms, 1e-3)


@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("attention", ["held", "integrated"])
def test_runs_that_hooks_changed(mode, attention):
    made = tiny.make("gpt2", tiny.KINDS[0])
    hook = next(name for name in made.model.hook_dict if name.endswith("0.attn.hook_z"))

    def change(tensor, hook):
        tensor = tensor.clone()
        tensor[:, 3] = tensor[:, 3] * 0.5
        return tensor

    with made.model.hooks(fwd_hooks=[(hook, change)]):
        cache = made.cache()
        _, during = run_with_propagation(made.model, made.tokens(), edits=mode)
    with pytest.raises(tl_norms.DecompositionError):
        propagate(cache)
    found = propagate(cache, edits=mode, attention=attention)
    assert close(found.logits(7), attribute(cache, logit(7), edits=mode, attention=attention).tokens, 1e-10)
    assert [edit.positions for edit in found.edits] == [((0, 3), (1, 3))]
    assert during.edits == found.edits
    if attention == "held":
        torch.testing.assert_close(during.norms, found.norms)


def test_rules_that_do_not_exist_are_refused(case):
    _, cache, _, _ = case
    for options, match in [
        (dict(attention="rolled"), "'held' or 'integrated'"),
        (dict(ff="all"), "'ig', 'half', 'gate' or 'drop'"),
        (dict(edits="keep"), "'refuse', 'replace' or 'add'"),
    ]:
        with pytest.raises(tl_norms.UnknownOptionError, match=match):
            propagate(cache, **options)
