"""`tl-norms judge`."""

import io

import judge_models
import pytest
import tiny
from rich.console import Console

from tl_norms.__main__ import main
from tl_norms.cli import judge_table
from tl_norms.faithfulness import Report
from tl_norms.faithfulness.study import Judge

if "bridge" not in tiny.KINDS:
    pytest.skip("these models are bridges", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model on disk."""
    made = tmp_path_factory.mktemp("model")
    words = judge_models.tokenizer()
    judge_models.hugging_face("gpt2", len(words)).save_pretrained(made)
    words.save_pretrained(made)
    return str(made)


def judge(*arguments: str) -> int:
    return main(["judge", *arguments])


def test_a_table_a_csv_and_a_page(folder, tmp_path, capsys):
    csv, page = tmp_path / "all.csv", tmp_path / "page.html"
    given = ["--model", folder, "--task", "agreement", "--task", "polarity", "--limit", "4", "--method", "erasure"]
    assert judge(*given, "--method", "recency", "--csv", str(csv), "--html", str(page), "--draws", "2") == 0
    out = capsys.readouterr().out
    assert "| erasure |" in out and "SRG (cut) ↑" in out and "examples that the model gets" in out
    report = Report.from_csv(csv)
    assert len(report.full) == 8 and report.tasks == ("agreement", "polarity") and page.exists()
    assert dict(report.about)["positions removed"] == "(0.25, 0.5, 0.75)"


def test_every_number_of_positions_is_removed_if_asked_for(folder, tmp_path):
    csv = tmp_path / "all.csv"
    given = ["--model", folder, "--task", "agreement", "--limit", "2", "--method", "recency", "--metric", "SRG"]
    assert judge(*given, "--fraction", "all", "--csv", str(csv), "--draws", "2", "--quiet") == 0
    assert "0.25" not in dict(Report.from_csv(csv).about).get("positions removed", "")


def test_rows_of_ones_own(folder, tmp_path, capsys):
    rows = tmp_path / "mine.csv"
    rows.write_text("prefix,good,bad\nThe keys near the car,are,is\nThe key near the cars,is,are\n", encoding="utf-8")
    given = ["--model", folder, "--rows", str(rows), "--evidence", "none", "--method", "recency", "--metric", "SRG"]
    assert judge(*given, "--removal", "replace", "--replacement", "9", "--draws", "2") == 0
    assert "replacement: 9" in capsys.readouterr().out


def test_bad_input(folder, tmp_path, capsys):
    assert judge("--model", folder, "--task", "sentiment") == 2
    assert "no task 'sentiment'" in capsys.readouterr().err
    for arguments, message in (
        ([], "a task is needed"),
        (["--task", "ioi", "--csv", str(tmp_path / "gone" / "x.csv")], "no folder"),
        (["--task", "ioi", "--replacement", "median"], "token id"),
        (["--task", "ioi", "--fraction", "2"], "share in"),
        (["--task", "ioi", "--removal", "drop"], "invalid choice"),
    ):
        with pytest.raises(SystemExit) as caught:
            judge(*arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_terminal_of_80_columns_holds_the_table(folder, tmp_path, capsys):
    csv = tmp_path / "all.csv"
    given = ["--model", folder, "--task", "agreement", "--limit", "4", "--method", "attribute integrated baseline"]
    assert judge(*given, "--method", "erasure", "--csv", str(csv), "--draws", "2", "--quiet") == 0
    report = Report.from_csv(csv)
    drawn = io.StringIO()
    which = "right" if report.right.any() else "wrong"
    judge_table.printed(report, which, False, Console(file=drawn, width=80, force_terminal=False))
    lines = drawn.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line or "**" in line for line in lines)
    assert sum("attribute integrated baseline" in line for line in lines) == 3  # evidence, cut, replace
    means = report.to_dataframe(which).set_index(["method", "metric"])["value"]
    found = [line for line in lines if line.startswith("erasure")][-1].split()[1:]
    assert found == [f"{means['erasure', label]:.2f}" for label in report.labels if "(replace)" in label]


def test_what_is_stopped_goes_on(folder, tmp_path, capsys, monkeypatch):
    """Ctrl-C in the second chunk: the first is kept, and not measured again."""
    state, csv = tmp_path / "state.npz", tmp_path / "all.csv"
    given = ["--model", folder, "--task", "agreement", "--limit", "20", "--method", "recency", "--metric", "SRG"]
    given += ["--draws", "2", "--resume", str(state), "--csv", str(csv), "--quiet"]
    measure, sizes = Judge.measure, []

    def stopped(study, model, batch):
        sizes.append(len(batch.windows))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return measure(study, model, batch)

    monkeypatch.setattr(Judge, "measure", stopped)
    assert judge(*given) == 130
    assert f"goes on from --resume {state}" in capsys.readouterr().err
    assert judge(*given) == 0
    assert sum(sizes) == 20 + sizes[1] and len(Report.from_csv(csv).full) == 20
