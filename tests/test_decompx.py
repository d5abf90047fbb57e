"""DecompX against its formula: one held pass of Hugging Face's modules per token, the first values' bias apart."""

import held_reference
import pytest
import tiny
import torch

import tl_norms
from tl_norms import attribute, direction, logit, methods, propagate

CASES = [(name, kind) for name, kind in tiny.CASES if name in ("bert", "gpt2", "llama_mqa_biased")]
N = 7
TARGET = logit(7) - 2 * logit(11, at=3)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    made = tiny.make(*request.param)
    tokens = made.tokens()
    return made, made.cache(tokens), held_reference.held(held_reference.Run(made.hf, tokens))


def limit_of(made):
    return 1e-6 if made.family.rms else 1e-9  # Hugging Face's Llama computes norms in float32


def one_layer(layer, x, first):
    """Vectors of every position of x behind one layer, [t b q d], and what belongs to none.

    first: the values' bias goes with its source.
    """
    values = layer.value(x if layer.before is None else layer.before(x))
    none = torch.zeros_like(values)

    def through(y, own):
        return layer(y, values=own) if first else layer(y)

    nothing = through(torch.zeros_like(x), none)
    vectors = []
    for t in range(x.shape[1]):
        alone, own = torch.zeros_like(x), none.clone()
        alone[:, t], own[:, t] = x[:, t], values[:, t]
        vectors.append(through(alone, own) - nothing)
    return torch.stack(vectors).detach(), nothing.detach()


def all_layers(reference, first):
    """The same through all layers: vectors [layer t b q d] and remainders [layer b q d]."""
    vectors, nothing = one_layer(reference.layers[0], reference.streams[0], first)
    found, rest = [vectors], [nothing]
    for layer in reference.layers[1:]:
        constant = layer(torch.zeros_like(nothing))
        found.append(torch.stack([layer(one) - constant for one in found[-1]]).detach())
        rest.append(layer(rest[-1]).detach())
    return torch.stack(found), torch.stack(rest)


def close(found, expected, limit, size=None):
    return float((found - expected).abs().max() / (expected.abs().max() if size is None else size)) < limit


@pytest.mark.parametrize("first_bias", ["sources", "remainder"])
@pytest.mark.parametrize("reading", ["norm", "along"])
def test_maps_rollout_and_remainder_are_the_formula(case, first_bias, reading):
    made, cache, reference = case
    first = first_bias == "sources"
    vectors, rest = all_layers(reference, first)
    own = [one_layer(reference.layers[0], reference.streams[0], first)[0]]
    later = zip(reference.layers[1:], reference.streams[1:-1], strict=True)
    own += [one_layer(layer, x, False)[0] for layer, x in later]
    y = torch.stack(reference.streams[1:])

    def read(v, whole):
        return v.norm(dim=-1) if reading == "norm" else (v * whole).sum(-1) / whole.norm(dim=-1)

    found = methods.decompx(cache, reading=reading, first_bias=first_bias)
    expected = read(vectors, y[:, None]).movedim(1, -1)  # [layer b q t]
    assert found.rollout.shape == found.maps.shape == (tiny.N_LAYERS, 2, N, N)
    assert close(found.rollout, expected, limit_of(made))
    assert close(found.maps, read(torch.stack(own), y[:, None]).movedim(1, -1), limit_of(made))
    assert close(found.remainder, read(rest, y), limit_of(made), expected.abs().max())
    assert found.layers == (0, 1) and float(found.error.max()) < limit_of(made)
    if reading == "along":
        whole = found.rollout.sum(-1) + found.remainder
        torch.testing.assert_close(whole, y.norm(dim=-1), rtol=limit_of(made), atol=0)


def test_the_first_value_bias_is_what_differs_from_propagation(case):
    made, cache, _ = case
    found, plain = methods.decompx(cache), propagate(cache)
    assert not close(found.rollout, plain.norms, 1e-3)
    torch.testing.assert_close(methods.decompx(cache, first_bias="remainder").rollout, plain.norms)
    # a single block's vectors have every value bias with their sources: the first layer is that block
    norms = tl_norms.block_norms(cache, tl_norms.scopes(made.model)[-1], layers=0)
    assert close(found.maps[0], norms[norms.scopes[0]][0], limit_of(made))


def test_scores_are_what_tokens_give_to_a_target(case):
    made, cache, reference = case
    vectors, rest = all_layers(reference, True)

    def named(x):
        logits = reference.head(x)
        return logits[:, -1, 7] - 2 * logits[:, 3, 11]

    nothing = named(torch.zeros_like(rest[-1]))
    expected = torch.stack([named(v) - nothing for v in vectors[-1]], -1).detach()
    found = methods.decompx(cache, TARGET)
    size = expected.abs().max()
    assert close(found.scores, expected, limit_of(made))
    assert close(found.offset, named(rest[-1]).detach(), limit_of(made), size)
    assert close(found.scores.sum(-1) + found.offset, found.value, limit_of(made), size)
    assert "scores of logit(7)" in repr(found) and found.target_name == TARGET.name
    plain = methods.decompx(cache, TARGET, first_bias="remainder")
    torch.testing.assert_close(plain.scores, attribute(cache, TARGET).tokens)
    assert (plain.scores - found.scores).abs().max() > 1e-4 * size


@pytest.mark.parametrize("layer", [0, 1, None])
def test_targets_of_any_layer(case, layer):
    _, cache, _ = case
    target = direction(tiny.waves((tiny.D_MODEL,), 0.3), layer=layer, at=[2, 5]) + logit(3)
    found = methods.decompx(cache, target, first_bias="remainder")
    torch.testing.assert_close(found.scores, attribute(cache, target).tokens)
    torch.testing.assert_close(found.offset, attribute(cache, target).offset[0])


def test_padding_budgets_and_caches_without_batch_axis():
    made = tiny.make("bert", tiny.KINDS[0])
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 4:] = 0
    found, alone = methods.decompx(made.cache(mask=mask), mask=mask), methods.decompx(made.cache(made.tokens()[1:, :4]))
    torch.testing.assert_close(found.rollout[:, 1, :4, :4], alone.rollout[:, 0], rtol=1e-6, atol=1e-8)
    assert not found.rollout[:, 1, :, 4:].any()
    cache = made.cache()
    with pytest.raises(tl_norms.MemoryBudgetError, match="one source token"):
        methods.decompx(cache, max_memory=10)
    causal = tiny.make("gpt2", tiny.KINDS[0]).cache()
    for one in (cache, causal):
        with pytest.raises(tl_norms.MemoryBudgetError) as refused:
            methods.decompx(one, max_memory=1)
        least = int(str(refused.value).partition("max_memory=")[2].split()[0])
        few, whole = methods.decompx(one, TARGET, max_memory=least), methods.decompx(one, TARGET)
        torch.testing.assert_close(few.rollout, whole.rollout, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(few.scores, whole.scores, rtol=1e-10, atol=1e-12)
    one = made.model.run_with_cache(made.tokens()[:1])[1]
    single = methods.decompx(one, TARGET)
    one.remove_batch_dim()
    bare = methods.decompx(one, TARGET)
    torch.testing.assert_close(bare.rollout, single.rollout[:, 0])
    assert bare.scores.shape == (N,) and bare.value.shape == () and bare.remainder.shape == (2, N)


def test_what_does_not_exist_is_refused(case):
    _, cache, _ = case
    for options, error, match in [
        (dict(reading="l3"), tl_norms.UnknownOptionError, "'norm' or 'along'"),
        (dict(reading=["norm"]), tl_norms.UnknownOptionError, "'norm' or 'along'"),
        (dict(first_bias="tokens"), tl_norms.UnknownOptionError, "'sources' or 'remainder'"),
        (dict(target=[TARGET]), tl_norms.UnknownOptionError, "one Target"),
        (dict(target=logit(10**6)), tl_norms.TargetError, "1000000"),
        (dict(ff="all"), tl_norms.UnknownOptionError, "'ig'"),
        (dict(check="yes"), tl_norms.UnknownOptionError, "check"),
    ]:
        with pytest.raises(error, match=match):
            methods.decompx(cache, **options)
    with pytest.raises(tl_norms.NotACacheError):
        methods.decompx({})


def test_vectors_that_lose_something_are_refused(case, monkeypatch):
    _, cache, _ = case
    from tl_norms.linear.carry.forward import Owned

    whole = Owned.__call__
    monkeypatch.setattr(Owned, "__call__", lambda self, x: whole(self, x) * (1.001 if self.places else 1.0))
    with pytest.raises(tl_norms.DecompositionError, match="after layer 0"):
        methods.decompx(cache)
    assert not float(methods.decompx(cache, check=False).error.max()) < 1e-5


def test_the_judge_has_it():
    from tl_norms.faithfulness.methods import available

    assert "decompx" in available()
