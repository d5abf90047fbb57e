"""estimate: what it says about memory and pairs is compared, what it says about time is only asked to grow."""

import pytest
import tiny
import torch

import tl_norms
from tl_norms import estimates


@pytest.mark.parametrize("what", ["propagate", "attribute", "block_norms"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_results_and_caches_have_the_size_that_was_said(what, name):
    made = tiny.make(name, tiny.KINDS[0])
    n = 20
    said = tl_norms.estimate(made.model, n, what)
    assert said.n == n and said.what == what and said.seconds > 0 and said.bytes > said.result_bytes
    cache = made.cache(tiny.Tiny.tokens(1, n))
    if what == "propagate":
        found = tl_norms.propagate(cache)
        size = found.norms.nbytes + found.remainder_norms.nbytes
    elif what == "attribute":
        found = tl_norms.attribute(cache, tl_norms.logit(3))
        size = sum(part.nbytes for part in (found.stream, found.ffn, found.bypass, found.heads))
    else:
        found = tl_norms.block_norms(cache)
        size = sum(found[scope].nbytes for scope in found.scopes)
    assert said.result_bytes == pytest.approx(size, rel=0.1)
    assert what in repr(said) and "MB" in repr(said)


def test_time_and_memory_of_longer_runs_are_extrapolated():
    """Beyond the model's own context: no run of that length is needed."""
    model = tiny.make("gpt2", tiny.KINDS[0]).model
    for what in ("propagate", "block_norms"):
        short, long = tl_norms.estimate(model, 32, what), tl_norms.estimate(model, 3200, what)
        assert long.result_bytes >= 9_000 * short.result_bytes and long.seconds > short.seconds
    small = tl_norms.estimate(model, 320, max_memory=1)
    assert small.bytes < tl_norms.estimate(model, 320).bytes


def test_the_bytes_of_a_cache_are_those_of_a_longer_one():
    made = tiny.make("gpt2", tiny.KINDS[0])
    short, long = (made.cache(tiny.Tiny.tokens(1, n)) for n in (8, 24))
    linear = {id(t): t for t in long.cache_dict.values() if isinstance(t, torch.Tensor)}
    assert estimates._bytes(short, 8, 24) == pytest.approx(sum(t.nbytes for t in linear.values()), rel=0.1)


def test_nonsense_is_refused():
    model = tiny.make("gpt2", tiny.KINDS[0]).model
    for arguments, match in [((32, "everything"), "propagate"), ((0,), "at least 1"), ((2.5,), "at least 1")]:
        with pytest.raises(tl_norms.UnknownOptionError, match=match):
            tl_norms.estimate(model, *arguments)
