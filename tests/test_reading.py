"""Deciding once, computing often: what is kept of a model, when it is read again, and what reading leaves behind."""

import pytest
import torch
from tiny import FAMILIES, boot, hugging_face, make
from torch import nn

import tl_norms
from tl_norms.blocks import bridge as bridge_module
from tl_norms.blocks.fingerprint import fingerprint
from tl_norms.blocks.forms import computed, normed
from tl_norms.blocks.structure import FeedForward, Norm
from tl_norms.blocks.trace import combination
from tl_norms.plan import reader_of

pytest.importorskip("transformer_lens.model_bridge")


@pytest.fixture(params=["gpt2", "llama_gqa", "gemma", "bert"])
def tiny(request):
    return make(request.param, "bridge", fresh=True)


def layers(tiny) -> nn.Module:
    return tiny.model.blocks


def written(parameter: nn.Parameter, how: str) -> None:
    with torch.no_grad():
        if how == "in place":
            parameter.add_(1)
        elif how == ".data":
            parameter.data += 1
        elif how == "numpy":
            parameter.detach().numpy()[...] += 1


@pytest.mark.parametrize("how", ["in place", ".data", "numpy"])
def test_changed_weights_are_seen(tiny, how):
    before = fingerprint(layers(tiny))
    tiny.cache()
    assert fingerprint(layers(tiny)) == before, "running a model changes no weights"
    for parameter in list(layers(tiny).parameters())[::5]:
        now = fingerprint(layers(tiny))
        written(parameter, how)
        assert fingerprint(layers(tiny)) != now


def test_replaced_and_loaded_weights_are_seen(tiny):
    before = fingerprint(layers(tiny))
    state = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    tiny.model.load_state_dict(state)
    loaded = fingerprint(layers(tiny))
    assert loaded != before
    with torch.no_grad():
        next(layers(tiny).parameters()).fill_(float("nan"))
    assert fingerprint(layers(tiny)) == fingerprint(layers(tiny)) != loaded


def test_a_model_is_read_once_until_its_weights_change(tiny, monkeypatch):
    readings, read = [], bridge_module.read_layout
    monkeypatch.setattr(bridge_module, "read_layout", lambda *args: readings.append(1) or read(*args))
    tl_norms.scopes(tiny.model), tl_norms.block_norms(tiny.cache()), tl_norms.required_hooks(tiny.model)
    assert len(readings) == 1
    written(next(layers(tiny).parameters()), ".data")
    tl_norms.scopes(tiny.model)
    assert len(readings) == 2


def test_reading_leaves_the_model_as_it_was(tiny):
    parameters = dict(tiny.model.named_parameters())
    before = {n: (id(p), p._version, p.dtype, p.detach().clone()) for n, p in parameters.items()}
    order = list(tiny.model.state_dict())
    reader_of(tiny.model).blocks()
    assert list(tiny.model.state_dict()) == order
    for name, parameter in tiny.model.named_parameters():
        identity, version, dtype, value = before[name]
        assert (id(parameter), parameter._version, parameter.dtype) == (identity, version, dtype)
        assert torch.equal(parameter, value)


def test_a_failed_reading_leaves_the_model_as_it_was(tiny):
    before = {n: id(p) for n, p in tiny.model.named_parameters()}
    inner = next(m for n, m in layers(tiny)[1].named_modules() if isinstance(m, nn.Linear))
    handle = inner.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match="out of memory"):
        tl_norms.scopes(tiny.model)
    handle.remove()
    assert {n: id(p) for n, p in tiny.model.named_parameters()} == before
    assert tl_norms.scopes(tiny.model)[0] == "attn"


def test_forms_are_decided_and_weights_read_afresh(tiny):
    reader = reader_of(tiny.model)
    block = reader.blocks()[1]
    with torch.no_grad():
        for parameter in layers(tiny).parameters():
            parameter.mul_(1.1)
    cache = tiny.cache()
    checked = set()
    for step in (step.operation for step in block.steps):
        if isinstance(step, Norm):
            x, y = cache[step.module + ".hook_in"], cache[step.module + ".hook_out"]
            torch.testing.assert_close(normed(x, reader.norm(step)), y, rtol=1e-5, atol=1e-6)
            checked.add("norm")
        if isinstance(step, FeedForward):
            into = step.module + (".in.hook_in" if tiny.family.name == "bert" else ".hook_in")
            x, y = cache[into], cache[step.output.plus[0]]
            (weights,) = reader.feed_forward(step, x)
            torch.testing.assert_close(computed(weights, x), y, rtol=1e-5, atol=1e-6)
            checked.add("feed-forward")
    assert checked == {"norm", "feed-forward"}


def stubborn(model: nn.Module) -> nn.Module:
    """Blocks that run in bfloat16 only, as kernels of some models do."""
    for layer in model.model.layers:

        def forward(hidden_states, *args, run=layer.forward, **options):
            if hidden_states.dtype != torch.bfloat16:
                raise RuntimeError("this kernel knows bfloat16 only")
            return run(hidden_states, *args, **options)

        layer.forward = forward
    return model


def test_blocks_that_run_in_half_precision_only_are_read_in_it():
    family = FAMILIES["llama_gqa"]
    expected = reader_of(make("llama_gqa", "bridge").model).blocks()
    model = boot(stubborn(hugging_face(family, torch.bfloat16)), family.hf_class)
    blocks = reader_of(model).blocks()
    assert [block.scopes for block in blocks] == [block.scopes for block in expected]
    norms = [step.operation.kind for block in blocks for step in block.steps if isinstance(step.operation, Norm)]
    assert all(kind is not None and not kind.center for kind in norms)


def test_where_half_precision_leaves_a_choice_nothing_is_guessed():
    """Norms of gain one and an attention that writes nothing: which norm precedes the feed-forward is open."""
    family = FAMILIES["llama_gqa"]
    model = stubborn(hugging_face(family, torch.bfloat16))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name:
                parameter.zero_()
            if "layernorm" in name:
                parameter.fill_(1.0)
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match="ambiguous"):
        tl_norms.scopes(boot(model, family.hf_class))


@pytest.mark.parametrize("dtype, size", [(torch.float32, 1e3), (torch.float64, 1e6), (torch.bfloat16, 1.0)])
def test_sums_are_compared_with_the_branch(dtype, size):
    """Beside a stream of any size the branch is seen, or the sum is not believed; it is never overlooked."""
    generator = torch.Generator().manual_seed(0)
    stream, branch, other = (torch.randn(4, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    stream = stream * size
    target = (stream + branch).to(dtype)
    parts = [stream.to(dtype), branch.to(dtype)]
    assert combination(target, parts) == [1.0, 1.0]
    assert combination(parts[0], parts) is None, "a sum without the branch"
    assert combination(target, [parts[0], other.to(dtype)]) is None, "a sum with another branch"
    scaled = (stream + 0.3 * branch).to(dtype)
    assert combination(scaled, parts, known=()) is None or dtype == torch.float64, "fitted in float64 only"
    if size == 1 or dtype == torch.float64:
        assert combination(scaled, parts, known=(0.3, 0.7)) == [1.0, 0.3]
