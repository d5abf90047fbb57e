"""Examples of one length go through a model together, and come out as if alone."""

import dataclasses
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import judge_models
import numpy as np
import pytest
import tiny
import torch

from tl_norms import faithfulness
from tl_norms.faithfulness import Report, evaluate, running, subsets, tasks
from tl_norms.faithfulness.methods import Method
from tl_norms.faithfulness.summary import by_method
from tl_norms.faithfulness.targets import joined
from tl_norms.studies.engine.fingerprint import model_facts

if "bridge" not in tiny.KINDS:
    pytest.skip("these models are bridges", allow_module_level=True)

QUIET = {"progress": False, "draws": 2}
BY_EXAMPLE = ("values", "task", "example", "full", "right", "removable", "costs")
NAMES = [name for name, method in faithfulness.available(2).items() if method.batched]


@pytest.fixture(scope="module")
def task(llama):
    return tasks.agreement(llama, 4, attractors=(1,))


def of_one_length(model, task, n: int):
    chosen = [one for one in task.examples if len(one.tokens) == len(task.examples[0].tokens)][:n]
    return torch.tensor([one.tokens for one in chosen]), [task.target(one) for one in chosen]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_several_examples_are_those_of_each(llama, task, name):
    method = faithfulness.available(2)[name]
    tokens, targets = of_one_length(llama, task, 3)
    assert len({(target.good, target.bad) for target in targets}) > 1 and len(targets) == 3
    with torch.no_grad():
        together = method.scores_of(llama, tokens, targets)
        alone = [method.scores(llama, row[None], target) for row, target in zip(tokens, targets, strict=True)]
    for found, wanted in zip(together, alone, strict=True):
        assert found.shape == wanted.shape == (1, tokens.shape[1])
        assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    assert name == "recency" or not np.allclose(together[0], together[1], rtol=1e-3)


def test_a_joined_target_has_a_row_for_each(llama, bert, task):
    tokens, targets = of_one_length(llama, task, 3)
    wanted = [float(t.of(llama, row[None]).detach()) for row, t in zip(tokens, targets, strict=True)]
    assert joined(targets).of(llama, tokens).tolist() == pytest.approx(wanted)
    assert joined(targets[:1]) == targets[0]
    probed = tasks.subjects(bert, 4, train=24)
    tokens, targets = of_one_length(bert, probed, 2)
    wanted = [float(t.of(bert, row[None]).detach()) for row, t in zip(tokens, targets, strict=True)]
    assert joined(targets).of(bert, tokens).tolist() == pytest.approx(wanted)


@pytest.fixture
def whole(monkeypatch):
    """Whole inputs, one row for every set; trees of sets are tested elsewhere."""
    monkeypatch.setattr("tl_norms.faithfulness.forest.fits", lambda model: False)


def test_sets_of_several_examples_are_run_together_and_once(llama, task, whole):
    tokens, targets = of_one_length(llama, task, 3)
    sets = np.random.default_rng(0).random((5, tokens.shape[1])) > 0.4
    alone = [faithfulness.Subsets(llama, row, t, "cut")(sets) for row, t in zip(tokens, targets, strict=True)]
    inputs = [faithfulness.Subsets(llama, row, t, "cut") for row, t in zip(tokens, targets, strict=True)]
    for one in inputs:
        one.ask(sets)
    runs = []
    with running.edited(llama, {running.last_states_hook(llama): lambda x: runs.append(len(x))}):
        subsets.run_asked([*inputs, inputs[0]])
        found = [one(sets) for one in inputs]
    assert runs == [3 * len(np.unique(sets, axis=0))]
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in zip(found, alone, strict=True))


def test_what_erasure_has_run_is_not_run_again_and_is_paid_for(llama, task, whole):
    """Effect correlation with "cut" wants the very sets of erasure."""
    first = task.first(1)
    runs = []
    with running.edited(llama, {running.last_states_hook(llama): lambda x: runs.append(len(x))}):
        evaluate(llama, first, ["erasure"], ["effect correlation"], "cut", **QUIET)
        runs.clear()
        found = evaluate(llama, first, ["erasure", "recency"], ["effect correlation"], "cut", **QUIET)
    n = len(first.examples[0].tokens)
    assert sum(runs) == n  # the whole, and without each but the last: of position 0 too, which no metric asks for
    assert found.costs[0, 0, 0] == n


def test_an_example_that_fails_takes_no_other_with_it(llama, task, monkeypatch):
    second = task.examples[1].tokens

    def sometimes(model, tokens, target):
        found = torch.arange(tokens.shape[1]).expand(tokens.shape) * 1.0
        return found.masked_fill((tokens == torch.tensor(second)).all(1)[:, None], float("nan"))

    monkeypatch.setattr(
        "tl_norms.faithfulness.evaluation.chosen", lambda *_: (Method("sometimes", sometimes, batched=True),)
    )
    found = evaluate(llama, task, ["sometimes"], ["MRR"], "cut", **QUIET)
    assert np.isnan(found.values[1]).all() and np.isfinite(found.values[[0, 2, 3]]).all()


@pytest.mark.slow
def test_processes_give_the_same(gpt2, tmp_path):
    task = tasks.agreement(gpt2, 4, attractors=(1,))
    options = dict(methods=["erasure", "recency"], metrics=["MRR", "SRG"], chunk=2, **QUIET)
    wanted = evaluate(gpt2, task, **options)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        found = evaluate(judge_models.gpt2, task, executor=executor, **options)
    assert np.allclose(found.values, wanted.values) and found.methods == wanted.methods


def test_a_csv_keeps_what_is_no_number(llama, task, tmp_path):
    made = evaluate(llama, task, ["recency"], ["MRR", "SRG"], "cut", **QUIET)
    made = dataclasses.replace(made, refused=(("gim", 'says "no", # and why'),), excluded=(("row 3", "is empty"),))
    file = tmp_path / "all.csv"
    made.to_csv(file)
    again = Report.from_csv(file)
    assert (again.refused, again.excluded, again.about) == (made.refused, made.excluded, made.about)
    assert np.array_equal(again.values, made.values, equal_nan=True) and dict(again.about)["versions"]
    made.to_csv(tmp_path / "all.csv.gz")
    packed = Report.from_csv(tmp_path / "all.csv.gz")
    assert np.array_equal(packed.values, made.values, equal_nan=True) and packed.refused == made.refused
    assert (tmp_path / "all.csv.gz").read_bytes()[:2] == b"\x1f\x8b"
    made.to_csv(file, digits=3)
    assert np.allclose(Report.from_csv(file).values, made.values, rtol=5e-3)
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join(["# no json", *lines[1:]]), encoding="utf-8")
    with pytest.raises(faithfulness.FaithfulnessInputError, match="first line is no line of a Report"):
        Report.from_csv(file)


def test_reports_of_other_examples_of_a_task_are_put_together(llama, task):
    options = dict(methods=["recency"], metrics=["MRR", "SRG"], removals="cut", **QUIET)
    whole = evaluate(llama, task, **options)
    parts = [evaluate(llama, dataclasses.replace(task, examples=task.examples[a : a + 2]), **options) for a in (0, 2)]
    with pytest.raises(faithfulness.FaithfulnessInputError, match="'agreement' and its example 0"):
        faithfulness.combined(parts)
    found = faithfulness.combined([parts[0], dataclasses.replace(parts[1], example=parts[1].example + 2)])
    assert found.tasks == whole.tasks and np.array_equal(found.example, whole.example)
    assert np.allclose(found.values, whole.values, equal_nan=True)


def test_a_method_joins_a_stored_report(llama, task, tmp_path):
    options = dict(metrics=["MRR", "SRG"], removals="cut", **QUIET)
    both = evaluate(llama, task, ["recency", "erasure", "gradient-norm"], **options)
    stored = evaluate(llama, task, ["recency", "erasure"], **options)
    stored.to_csv(tmp_path / "stored.csv")
    new = evaluate(llama, task, ["gradient-norm"], **options)
    turned = dataclasses.replace(new, **{name: getattr(new, name)[::-1] for name in BY_EXAMPLE})
    for other in (new, turned):  # the order of examples is that of the first
        found = faithfulness.combined([Report.from_csv(tmp_path / "stored.csv"), other])
        assert found.methods == ("recency", "erasure", "random", "gradient-norm") and found.columns.tolist()[-1] == [
            3,
            0,
        ]
        assert np.array_equal(found.example, both.example)
        one, two = (dict(zip(r.methods, np.moveaxis(by_method(r), 1, 0), strict=True)) for r in (found, both))
        for name in both.methods:
            assert np.allclose(one[name], two[name], rtol=1e-6, atol=1e-9, equal_nan=True), name
        assert np.array_equal(found.costs[:, 3, :2], both.costs[:, both.methods.index("gradient-norm"), :2])


def test_reports_that_do_not_belong_together_are_refused(llama, task):
    options = dict(metrics=["MRR", "SRG"], removals="cut", **QUIET)
    one, two = (evaluate(llama, task, [name], **options) for name in ("recency", "gradient-norm"))
    half = dataclasses.replace(two, **{name: getattr(two, name)[:1] for name in BY_EXAMPLE})
    elsewhere = dataclasses.replace(two, full=two.full[::-1] + 5)
    named = dataclasses.replace(two, about=(("model", "another"),))
    for other, message in (
        (half, "examples are in one report and not in another"),
        (elsewhere, "has the target"),
        (named, "of another model"),
        (evaluate(llama, task, ["recency", "gradient-norm"], **options), "have a method 'recency'"),
        (evaluate(llama, task, ["gradient-norm"], **{**options, "metrics": ["MRR"]}), "of other metrics"),
    ):
        with pytest.raises(faithfulness.FaithfulnessInputError, match=message):
            faithfulness.combined([one, other])
    with pytest.raises(faithfulness.FaithfulnessInputError, match="no report is given"):
        faithfulness.combined([])


def test_ten_lines_for_a_new_method(gpt2):
    """The example of the documentation, on a small model."""
    page = Path(__file__).parents[2].joinpath("docs", "judge.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", page, re.DOTALL)
    names = {"model": gpt2}
    exec(code.replace("limit=50", "limit=2, progress=False"), names)
    report = names["report"]
    assert report.methods == ("erasure", "gradient-x-input", "logit_lens", "random") and len(report.full) == 4
    assert np.isfinite(report.values[:, 2, report.cells.index(("SRG", "cut"))]).all()


def test_a_run_leaves_nothing_behind_that_a_file_to_resume_from_would_see(gpt2):
    """Bridges of joint queries, keys and values keep the pattern of their last run."""
    facts = []
    for tokens in ([[5, 3, 6]], [[5, 3, 6, 4], [7, 8, 9, 10]]):
        gpt2(torch.tensor(tokens))
        facts.append(model_facts(gpt2))
    assert facts[0] == facts[1]
