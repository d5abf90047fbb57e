"""What is used of TransformerLens' private parts works in the version installed, and is used in one file."""

import re
from pathlib import Path

import pytest
import torch
from tiny import KINDS, make

import tl_norms
from tl_norms.blocks import compat

PLACE = "blocks.0.hook_resid_pre"
SOURCES = Path(tl_norms.__file__).parent


@pytest.fixture(params=KINDS)
def tiny(request):
    return make("gpt2", request.param, fresh=True)


def run(tiny):
    with torch.no_grad():
        tiny.model(tiny.tokens())


def test_a_listener_fires_after_hooks_that_were_added_later(tiny):
    order = []
    point = dict(tiny.model.hook_dict.items())[PLACE]
    attached = compat.attach(point, lambda tensor, hook: order.append("listener"))
    tiny.model.add_hook(PLACE, lambda tensor, hook: order.append("user"))
    run(tiny)
    assert order == ["user", "listener"]
    compat.detach(attached)
    run(tiny)
    assert order == ["user", "listener", "user"], "the listener is still there, or took the user's hook with it"
    tiny.model.reset_hooks()
    run(tiny)
    assert len(order) == 3


def test_users_hooks_are_silent_meanwhile_and_back_afterwards(tiny):
    calls = []
    tiny.model.add_hook(PLACE, lambda tensor, hook: calls.append(1))
    tiny.model.add_hook(PLACE, lambda tensor, hook: calls.append(2), is_permanent=True)
    with pytest.raises(ValueError), compat.without_user_hooks(tiny.model):
        run(tiny)
        assert not calls
        raise ValueError
    run(tiny)
    assert calls == [1, 2]


def test_listening_hears_all_names_below_a_prefix_and_leaves(tiny):
    heard = {}
    with compat.listening(tiny.model, "blocks.1.", heard.__setitem__):
        run(tiny)
    cache = tiny.cache()
    expected = {name for name in cache if name.startswith("blocks.1.")}
    assert expected <= set(heard) and not any(name.startswith("blocks.0.") for name in heard)
    for name in expected:
        torch.testing.assert_close(heard[name], cache[name], rtol=0, atol=0)
    heard.clear()
    run(tiny)
    assert not heard


def test_switches_are_off_meanwhile(tiny):
    if not hasattr(tiny.model, "set_use_attn_result"):
        pytest.skip("this model has no such switch")
    tiny.model.set_use_attn_result(True)
    with compat.without_switches(tiny.model):
        assert not tiny.model.cfg.use_attn_result
    assert tiny.model.cfg.use_attn_result


def test_private_parts_are_used_in_one_file():
    private = re.compile(r"\._forward_hooks\b|move_to_end|\.hook\.id\b|\.__module__|[.\"]user_hook\b")
    users = {
        str(path.relative_to(SOURCES))
        for path in (*SOURCES.glob("*.py"), *SOURCES.glob("blocks/*.py"))
        if private.search(path.read_text())
    }
    assert users == {"blocks/compat.py"}


def test_the_switch_that_takes_a_hook_away_is_named(tiny):
    """The heads' sum replaces the output projection: the cache then lacks what the attention is compared with."""
    if tiny.kind != "bridge" or not hasattr(tiny.model, "set_use_attn_result"):
        pytest.skip("only bridges lose the hook")
    expected = tl_norms.scopes(tiny.model)
    tiny = make("gpt2", "bridge", fresh=True)
    tiny.model.set_use_attn_result(True)
    assert tl_norms.scopes(tiny.model) == expected
    with pytest.raises(tl_norms.MissingActivationError, match=r"set_use_attn_result\(False\)"):
        tl_norms.block_norms(tiny.cache())
