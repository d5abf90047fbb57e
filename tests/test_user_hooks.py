"""Reading a bridge runs five tokens through it once: the user's own hooks neither fire nor vanish."""

import pytest
import torch
from tiny import KINDS, make

import tl_norms

pytestmark = pytest.mark.skipif("bridge" not in KINDS, reason="this TransformerLens has no bridge")

PLACES = ["blocks.0.hook_in", "blocks.0.attn.hook_pattern", "blocks.1.hook_out", "blocks.1.hook_resid_post"]


class Counter:
    """A hook that counts its calls and doubles what passes."""

    def __init__(self):
        self.calls = 0

    def __call__(self, activation, hook):
        self.calls += 1
        return activation * 2


@pytest.fixture
def tiny():
    return make("gpt2", "bridge", fresh=True)


def logits(tiny):
    with torch.no_grad():
        return tiny.model(tiny.tokens())


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_hooks_neither_fire_nor_vanish(tiny, place, permanent):
    expected, clean = tl_norms.scopes(make("gpt2", "bridge").model), logits(tiny)
    counter = Counter()
    tiny.model.add_hook(place, counter, is_permanent=permanent)
    assert tl_norms.scopes(tiny.model) == expected, "the hook changed what was read"
    assert counter.calls == 0, "the hook fired"
    hooked = logits(tiny)
    assert counter.calls == 1, "the hook vanished, or fires twice"
    assert not torch.equal(hooked, clean)
    tiny.model.reset_hooks(including_permanent=True) if permanent else tiny.model.reset_hooks()
    assert torch.equal(logits(tiny), clean) and counter.calls == 1, "the hook can no longer be removed"


def test_backward_and_context_hooks_stay(tiny):
    forward, backward = Counter(), []

    def keep(gradient, hook):
        backward.append(gradient.shape)

    with tiny.model.hooks(fwd_hooks=[(PLACES[0], forward)], bwd_hooks=[(PLACES[2], keep)]):
        tl_norms.required_hooks(tiny.model)
        assert forward.calls == 0 and not backward
        tiny.model(tiny.tokens()).sum().backward()
        assert forward.calls == 1 and len(backward) == 1
    logits(tiny)
    assert forward.calls == 1


def test_hooks_survive_an_exception(tiny, monkeypatch):
    counter = Counter()
    tiny.model.add_hook(PLACES[0], counter)
    run = type(tiny.model).run_with_cache

    def broken(self, *args, **options):
        run(self, *args, **options)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(tiny.model), "run_with_cache", broken)
    with pytest.raises((RuntimeError, tl_norms.TLNormsError), match="out of memory"):
        tl_norms.scopes(tiny.model)
    monkeypatch.undo()
    assert counter.calls == 0
    logits(tiny)
    assert counter.calls == 1
    assert tl_norms.scopes(tiny.model)[0] == "attn", "a failed reading must not be remembered"


def test_the_model_is_run_once_and_left_as_it_was(tiny, monkeypatch):
    calls, run = [], type(tiny.model).run_with_cache

    def counted(self, tokens, *args, **options):
        calls.append(tuple(tokens.shape))
        return run(self, tokens, *args, **options)

    cache = tiny.cache()
    tiny.model.train()
    monkeypatch.setattr(type(tiny.model), "run_with_cache", counted)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    for _ in range(2):
        tl_norms.scopes(tiny.model), tl_norms.required_hooks(tiny.model), tl_norms.block_norms(cache)
    assert calls == [(1, 5)]
    assert tiny.model.training and all(p.grad is None for p in tiny.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
