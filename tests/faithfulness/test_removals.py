"""Removed is removed: against Hugging Face's own masks and input embeddings, and by changing what is gone."""

import numpy as np
import pytest
import tiny
import torch

from tl_norms import faithfulness
from tl_norms.errors import UnsupportedArchitectureError
from tl_norms.faithfulness import removals, running
from tl_norms.faithfulness.soft import SoftSubsets

TARGET = faithfulness.Target(11, 23)
GONE = (1, 3, 4)


def tokens(n: int = 7) -> torch.Tensor:
    return tiny.Tiny.tokens(1, n)[0]


def without(positions, n: int = 7) -> np.ndarray:
    kept = np.ones((1, n), bool)
    kept[0, list(positions)] = False
    return kept


@pytest.mark.parametrize("removal", ["cut", "replace"])
@pytest.mark.parametrize("replacement", ["mean", "zero", 9])
@pytest.mark.parametrize(("name", "kind"), tiny.CASES)
def test_the_token_of_a_removed_position_changes_nothing(name, kind, removal, replacement):
    model = tiny.make(name, kind).model
    values = []
    for shift in (0, 5, 11):
        ids = tokens()
        ids[list(GONE)] = (ids[list(GONE)] + shift) % tiny.VOCAB
        f = faithfulness.Subsets(model, ids, TARGET, removal, replacement)
        values.append([float(f(without(GONE))[0]), float(f(without(()))[0])])
    assert np.ptp([gone for gone, _ in values]) < 1e-6
    assert np.ptp([full for _, full in values]) > 1e-2  # left in, they matter


@pytest.mark.parametrize(("name", "kind"), tiny.CASES)
def test_removing_nothing_is_the_model_itself(name, kind):
    made = tiny.make(name, kind)
    wanted = TARGET.value(made.hf(tokens()[None]).logits).detach()
    for removal in ("cut", "replace"):
        found = faithfulness.Subsets(made.model, tokens(), TARGET, removal)(without(()))
        assert found == pytest.approx(wanted.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama_mha", "llama_gqa", "qwen2", "bert"])
def test_cut_is_a_mask_of_hugging_faces_own(name):
    """Nobody else attends to the position; positions of the others stay."""
    for kind in tiny.KINDS:
        if (name, kind) not in tiny.CASES:
            continue
        made = tiny.make(name, kind)
        n = len(tokens())
        seen = torch.ones(n, n, dtype=torch.bool) if name == "bert" else torch.ones(n, n, dtype=torch.bool).tril()
        seen[:, list(GONE)] = False
        seen |= torch.eye(n, dtype=torch.bool)
        mask = torch.zeros(n, n, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
        logits = made.hf(tokens()[None], attention_mask=mask[None, None]).logits
        found = faithfulness.Subsets(made.model, tokens(), TARGET, "cut")(without(GONE))
        assert found == pytest.approx(TARGET.value(logits).detach().numpy(), abs=1e-5)


@pytest.mark.parametrize("replacement", ["mean", "zero", 9])
@pytest.mark.parametrize(
    ("name", "kind"), [case for case in tiny.CASES if case[0] in ("gpt2", "llama_gqa", "gemma", "bert")]
)
def test_replace_is_another_input_embedding(name, kind, replacement):
    made = tiny.make(name, kind)
    table = made.hf.get_input_embeddings()
    with torch.no_grad():
        x = table(tokens()[None])
        every = table(torch.arange(tiny.VOCAB)[None])
        x[0, list(GONE)] = {"mean": every.mean(1)[0], "zero": 0 * every[0, 0], 9: every[0, 9]}[replacement]
        wanted = TARGET.value(made.hf(inputs_embeds=x).logits)
    found = faithfulness.Subsets(made.model, tokens(), TARGET, "replace", replacement)(without(GONE))
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)


def test_swap_is_the_other_text():
    made = tiny.make("gpt2", tiny.KINDS[0])
    other = (tokens() * 3 + 1) % tiny.VOCAB
    f = faithfulness.Subsets(made.model, tokens(), TARGET, "swap", counterfactual=other)
    mixed = tokens()
    mixed[list(GONE)] = other[list(GONE)]
    sets = np.concatenate([without(()), without(GONE), np.zeros((1, 7), bool)])
    wanted = [float(TARGET.value(made.hf(ids[None]).logits).detach()[0]) for ids in (tokens(), mixed, other)]
    assert f(sets) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(faithfulness.FaithfulnessInputError, match="counterfactual of the same number"):
        faithfulness.Subsets(made.model, tokens(), TARGET, "swap", counterfactual=other[:3])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_batches_and_order_change_nothing_and_every_set_is_run_once(kind):
    model = tiny.make("llama_gqa", kind).model
    sets = np.random.default_rng(0).random((40, 7)) > 0.4
    one = faithfulness.Subsets(model, tokens(), TARGET, "cut", batch_tokens=1)
    many = faithfulness.Subsets(model, tokens(), TARGET, "cut", batch_tokens=70)
    assert one(sets) == pytest.approx(many(sets[::-1])[::-1], abs=1e-6)
    n = len(np.unique(sets, axis=0))
    assert one.runs == n
    with running.counted(model) as passes:
        assert one(sets[:5]).shape == (5,)
    assert passes.forward == 0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_users_model_stays_as_it_was(kind):
    made = tiny.make("gpt2", kind, fresh=True)
    model, seen = made.model, []
    model.add_hook("blocks.0.hook_resid_post", lambda tensor, hook: seen.append(1))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hooks = {name: len(point._forward_hooks) for name, point in model.hook_dict.items()}
    for removal in ("cut", "replace"):
        faithfulness.Subsets(model, tokens(), TARGET, removal)(without(GONE))
    faithfulness.gim(model, tokens()[None], TARGET, baseline=3)
    assert {name: len(point._forward_hooks) for name, point in model.hook_dict.items()} == hooks
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    n = len(seen)
    model(tokens()[None])
    assert len(seen) == n + 1  # the user's own hook is still there
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_are_removed_when_a_run_fails():
    model = tiny.make("gpt2", tiny.KINDS[0]).model
    hook = running.embedding_hook(model)
    n = len(model.hook_dict[hook]._forward_hooks)
    with pytest.raises(ZeroDivisionError):
        running.output(model, tokens()[None], {hook: lambda x: 1 / 0})
    assert len(model.hook_dict[hook]._forward_hooks) == n


def test_a_removal_that_does_not_remove_is_an_error(monkeypatch):
    made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
    monkeypatch.setattr(removals, "_filled", lambda kept, filling: lambda x: None)  # an edit that is lost
    with pytest.raises(faithfulness.RemovalError, match="token of a removed position changes the output"):
        faithfulness.Subsets(made.model, tokens(), TARGET, "replace")
    monkeypatch.setattr(removals, "_cut", lambda model, kept, way: ({}, None))
    with pytest.raises(UnsupportedArchitectureError, match="cannot be cut out of attention"):
        faithfulness.Subsets(made.model, tokens(), TARGET, "cut")


def test_a_pattern_that_is_renormalised_is_a_softmax_of_fewer_scores():
    model = tiny.make("llama_gqa", tiny.KINDS[0]).model
    kept = torch.from_numpy(without(GONE))
    by = [running.output(model, tokens()[None], *removals._cut(model, kept, way)) for way in ("scores", "pattern")]
    stay = [0, 2, 5, 6]
    assert torch.allclose(by[0][:, stay], by[1][:, stay], atol=1e-6)


def test_names_that_mean_nothing():
    model = tiny.make("gpt2", tiny.KINDS[0]).model
    with pytest.raises(faithfulness.FaithfulnessInputError, match="no removal 'drop'"):
        faithfulness.Subsets(model, tokens(), TARGET, "drop")
    with pytest.raises(faithfulness.FaithfulnessInputError, match="'median'"):
        faithfulness.Subsets(model, tokens(), TARGET, "replace", "median")


def test_soft_removal_is_removal_at_rates_of_zero_and_one():
    model = tiny.make("llama_gqa", tiny.KINDS[0]).model
    soft = SoftSubsets(model, tokens(), TARGET, "mean", draws=4, seed=1)
    hard = faithfulness.Subsets(model, tokens(), TARGET, "replace")
    keep = np.concatenate([without(()), without(GONE)]).astype(float)
    assert soft(keep) == pytest.approx(hard(keep.astype(bool)), abs=1e-5)
    between = soft(np.full((1, 7), 0.5))
    assert abs(between[0] - soft(keep)[0]) > 1e-3
    assert soft(np.full((1, 7), 0.5)) == pytest.approx(between)


def test_a_mean_over_positions_is_over_those_that_are_left():
    made = tiny.make("bert", tiny.KINDS[0])
    weight = torch.linspace(-1, 1, 3 * tiny.D_MODEL, dtype=torch.float64).sin().reshape(3, -1)
    target = faithfulness.Target(0, 2, probe=faithfulness.Probe(weight, torch.tensor([0.5, 0.0, -0.25]), "mean"))
    keep = without(GONE)
    found = faithfulness.Subsets(made.model, tokens(), target, "cut")(keep)
    stay = torch.from_numpy(keep[0])
    mask = torch.ones(1, 7).masked_fill(~stay, 0)
    states = made.hf.bert(tokens()[None], attention_mask=mask).last_hidden_state[0, stay].mean(0)
    wanted = states @ (weight[0] - weight[2]) + 0.75
    assert found == pytest.approx([float(wanted.detach())], abs=1e-6)
