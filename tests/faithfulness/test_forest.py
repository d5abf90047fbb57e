"""Sets that share their beginnings are run as trees, and give what whole inputs give."""

import warnings

import judge_models
import numpy as np
import pytest
import tiny
import torch
import transformers

from tl_norms import MapError, faithfulness, methods
from tl_norms.composition import attention_flow
from tl_norms.faithfulness import Subsets, Target, evaluate, forest, running, tasks
from tl_norms.methods.decompx import scores_alone

if "bridge" not in tiny.KINDS:
    pytest.skip("these models are bridges", allow_module_level=True)

TOKENS = torch.tensor([1, 14, 25, 36, 47, 58, 69, 80])
SETS = np.random.default_rng(1).random((40, 8)) < 0.6
QUIET = {"progress": False, "draws": 2}


@pytest.fixture(params=["gpt2", "llama"])
def decoder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def whole(monkeypatch):
    """Values of whole inputs."""

    def values(*arguments) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(forest, "fits", lambda model: False)
            return Subsets(*arguments)(SETS)

    return values


@pytest.mark.parametrize(
    "options",
    [("cut",), ("replace",), ("replace", "zero"), ("replace", 9), ("swap", "mean", TOKENS.flip(0))],
    ids=["cut", "mean", "zero", "token", "swap"],
)
def test_trees_give_what_whole_inputs_give(decoder, options, whole, monkeypatch):
    assert forest.fits(decoder)
    monkeypatch.setattr(forest, "_NODES", 40)  # several sequences
    positions = []
    given = (decoder, TOKENS, Target(11, 12), *options)
    with running.edited(decoder, {running.embedding_hook(decoder): lambda x: positions.append(x[..., 0].numel())}):
        wanted, n_whole = whole(*given), sum(positions)
        positions.clear()
        found = Subsets(*given)(SETS)
    assert sum(positions) < 0.75 * n_whole
    assert np.ptp(wanted) > 1e-1 and np.allclose(found, wanted, rtol=0, atol=2e-6)  # rotations are float32


def test_inputs_share_a_run(llama):
    inputs = [Subsets(llama, tokens, Target(11, 12), "cut") for tokens in (TOKENS, TOKENS.flip(0))]
    alone = [Subsets(llama, one.tokens, one.target, "cut")(SETS) for one in inputs]
    for one in inputs:
        one.ask(SETS)
    runs = []
    with running.edited(llama, {running.last_states_hook(llama): lambda x: runs.append(len(x))}):
        faithfulness.subsets.run_asked(inputs)
    assert len(runs) == 1 and all(np.allclose(one(SETS), own) for one, own in zip(inputs, alone, strict=True))


def test_a_row_is_counted_for_every_set(llama):
    with running.counted(llama) as passes:
        Subsets(llama, TOKENS, Target(11, 12), "replace")(SETS)
    assert passes.forward == len(np.unique(SETS, axis=0))


def test_every_node_has_the_path_that_leads_to_it():
    random = np.random.default_rng(2)
    paths = [tuple((at, int(random.integers(2)), False) for at in range(random.integers(1, 6))) for _ in range(60)]
    found = forest.planted(paths, 10**6)
    assert len(found) == 1
    trees, numbers = found[0]
    assert sorted(numbers) == list(range(60))
    assert len(trees) == len({path[: n + 1] for path in paths for n in range(len(path))})
    seen = trees.ancestors(len(trees) + 3)
    for number, end in zip(numbers, trees.ends, strict=True):
        assert tuple(trees.steps[node] for node in seen[end].nonzero()[0]) == paths[number]
    assert seen[len(trees) :].sum() == 3
    small = forest.planted(paths, 7)
    assert max(len(trees) for trees, _ in small) <= 7 and sorted(n for _, own in small for n in own) == list(range(60))


def windowed(window: int):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48,
        vocab_size=200, max_position_embeddings=256, sliding_window=window,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.MistralForCausalLM(config).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_bridge_from_module(
            model, "MistralForCausalLM", hf_config=config, tokenizer=judge_models.tokenizer()
        )


def test_a_window_of_attention_is_seen(whole):
    narrow = windowed(8)
    assert not forest.fits(narrow)
    model = windowed(100)
    assert forest.fits(model)
    given = (model, TOKENS, Target(11, 12), "replace")
    wanted = whole(*given)
    assert np.allclose(Subsets(*given)(SETS), wanted, rtol=0, atol=2e-6)
    paths = [((0, token, False),) for token in range(5, 115)]
    with pytest.raises(forest.HiddenError), torch.no_grad():
        forest.run_paths(model, paths, "zero", 1024)


def test_encoders_and_probes_are_run_whole(bert, llama):
    assert not forest.fits(bert)
    at = Subsets(llama, TOKENS, Target(11, 12, at=5), "cut")(SETS)
    value = Target(11, 12, at=5).of(llama, TOKENS[None])
    assert np.allclose(at[SETS.all(1)], float(value.detach())) and np.ptp(at) > 0


def test_examples_come_back_in_the_order_of_the_task(llama):
    task = tasks.agreement(llama, 6, attractors=(2, 0, 1))
    lengths = [len(one.tokens) for one in task.examples]
    assert lengths != sorted(lengths)
    found = evaluate(llama, task, ["erasure"], ["MRR"], "cut", chunk=2, **QUIET)
    assert found.example.tolist() == list(range(6))
    wanted = [float(task.target(one).of(llama, torch.tensor([one.tokens])).detach()) for one in task.examples]
    assert found.full.tolist() == pytest.approx(wanted, abs=1e-5)


def test_flows_are_those_of_the_rows_that_explain(llama, bert):
    own = faithfulness.available(2)["attention-flow"]
    for model, task in ((llama, tasks.agreement(llama, 1)), (bert, tasks.subjects(bert, 1, train=24))):
        example = task.examples[0]
        tokens = torch.tensor([example.tokens])
        flows = methods.attention_flow(model.run_with_cache(tokens)[1]).rollout[-1][0]
        found = own.scores(model, tokens, task.target(example))[0]
        assert np.allclose(found, (flows[-1] if task.probe is None else flows.mean(0)).numpy(), rtol=0, atol=1e-12)
    maps = torch.rand(3, 4, 4, dtype=torch.float64)
    assert torch.equal(attention_flow(maps, queries=(2, -1)), attention_flow(maps)[:, [2, 3]])
    with pytest.raises(MapError, match="positions 0 to 3"):
        attention_flow(maps, queries=(4,))


def test_scores_alone_are_those_of_decompx(gpt2, bert):
    for model, task in ((gpt2, tasks.agreement(gpt2, 1)), (bert, tasks.subjects(bert, 1, train=24))):
        example = task.examples[0]
        cache = model.run_with_cache(torch.tensor([example.tokens]))[1]
        target = task.target(example).exact(len(example.tokens))
        torch.testing.assert_close(scores_alone(cache, target), methods.decompx(cache, target).scores)


def test_a_shared_gradient_is_charged_to_both(llama):
    task = tasks.agreement(llama, 3, attractors=(1,))
    runs = []
    with running.edited(llama, {running.last_states_hook(llama): lambda x: runs.append(x.requires_grad * len(x))}):
        both = ["gradient-x-input", "gradient-norm"]
        found = evaluate(llama, task, both, ["MRR"], "cut", **QUIET)
        runs.clear()
        evaluate(llama, task, both, ["MRR"], "cut", **QUIET)
    assert sum(runs) == 3 and (found.costs[:, :2, :2] == 1).all()
