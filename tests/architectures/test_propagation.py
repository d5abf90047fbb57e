"""Every architecture of the zoo that is attributed is propagated too: complete, and equal to the attribution."""

import pytest
import torch

import tl_norms
from tl_norms.read_targets import read_targets

from . import zoo
from .test_attribution import WHOLE
from .test_zoo import cached

TARGET = tl_norms.logit(3, at=1)


@pytest.mark.parametrize("name", WHOLE)
def test_forward_equals_backward(name):
    spec, made = zoo.SPECS[name], cached(name)
    tolerance = min(5 * spec.limit(torch.float64), zoo.FLOAT32)
    found = tl_norms.propagate(made.cache)
    assert float(found.error.max()) < tolerance
    credit = tl_norms.attribute(made.cache, TARGET)
    expected = [credit.tokens] if credit.source_tokens is None else [credit.tokens, credit.source_tokens]
    expected = torch.cat(expected, dim=-1)
    assert found.norms.shape[-1] == expected.shape[-1]
    size = torch.maximum(expected.abs().max(), credit.value.abs().max())
    assert float((found.logits(3, at=1) - expected).abs().max() / size) < 10 * tolerance

    model_map = found._model_map  # by hand, from the vectors themselves
    ending = read_targets(model_map, [TARGET])
    u = ending.at(model_map.stack.n_layers)[0]
    vectors = found.vectors(-1)
    vectors = vectors if vectors.ndim == 4 else vectors[None]
    by_hand = torch.einsum("bqd,bqkd->bk", u, vectors)
    assert float((by_hand - expected.reshape(by_hand.shape)).abs().max() / size) < 10 * tolerance
    assert set(found.unattended) == set(credit.unattended)


def one_at_a_time(name, **options):
    """Causal stacks leave out the positions before the source, for every operator there is."""
    made = cached(name)
    whole = tl_norms.propagate(made.cache, **options)
    with pytest.raises(tl_norms.MemoryBudgetError) as least:
        tl_norms.propagate(made.cache, max_memory=1, **options)
    budget = int(str(least.value).partition("max_memory=")[2].split()[0])
    found = tl_norms.propagate(made.cache, max_memory=budget, **options)
    largest = whole.norms.abs().amax()
    limit = 1e-6 if whole.norms.dtype == torch.float32 else 1e-10
    assert float((found.norms - whole.norms).abs().max() / largest) < limit
    return whole


@pytest.mark.parametrize("name", zoo.others_slow(WHOLE))
def test_one_source_at_a_time_gives_the_same(name):
    one_at_a_time(name)


@pytest.mark.parametrize("name", zoo.others_slow(WHOLE))
def test_with_softmaxes_integrated_too(name):
    spec, made = zoo.SPECS[name], cached(name)
    found = one_at_a_time(name, attention="integrated")
    tolerance = min(5 * max(spec.limit(torch.float64), zoo.FLOAT32_NORMS), zoo.FLOAT32)
    assert float(found.error.max()) < tolerance
    credit = tl_norms.attribute(made.cache, TARGET, attention="integrated")
    expected = [credit.tokens] if credit.source_tokens is None else [credit.tokens, credit.source_tokens]
    expected = torch.cat(expected, dim=-1)
    size = torch.maximum(expected.abs().max(), credit.value.abs().max())
    assert float((found.logits(3, at=1) - expected).abs().max() / size) < 10 * tolerance
