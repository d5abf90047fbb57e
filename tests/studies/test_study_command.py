"""`tl-norms study ...`: what it prints and writes is what the package returns."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import study_models

from tl_norms import studies
from tl_norms.__main__ import main
from tl_norms.cli import load

NAMES = [
    "value-norm-dispersion", "weight-against-norm", "frequency", "mixing-ratio", "contextualization-change",
    "amplified-pairs", "cancellation",
]  # fmt: skip


@pytest.fixture
def corpus(texts, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(load, "load", lambda name, dtype: study_models.bert())
    monkeypatch.setattr(load, "model_name", lambda given: "tiny")
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(texts))
    return file


@pytest.mark.parametrize("name", NAMES)
def test_every_study_writes_its_table(bert, corpus, texts, tmp_path, name, capsys):
    out = tmp_path / "out.csv"
    assert main(["study", name, "--texts", str(corpus), "--csv", str(out)]) == 0
    result = getattr(studies, name.replace("-", "_"))(bert, texts)
    wanted = result.correlations() if name == "weight-against-norm" else result.to_dataframe()
    found = pandas.read_csv(out)
    pandas.testing.assert_frame_equal(found, wanted, check_dtype=False, atol=1e-9)
    printed = capsys.readouterr().out
    assert f"{len(texts)} texts, {result.corpus.n_tokens} tokens" in printed and wanted.columns[0] in printed


def test_expansion_rate_needs_no_texts(bert, corpus, tmp_path):
    assert main(["study", "expansion-rate", "--csv", str(tmp_path / "o.csv"), "--quiet", "--layer", "1"]) == 0
    assert pandas.read_csv(tmp_path / "o.csv")["paper"].item() == pytest.approx(studies.expansion_rate(bert).paper[1])


def test_options_reach_the_study(bert, corpus, texts, tmp_path, capsys):
    jsonl = tmp_path / "corpus.jsonl"
    jsonl.write_text("\n".join(["{bad", *(json.dumps({"body": text}) for text in texts)]))
    out, state = tmp_path / "out.csv", tmp_path / "state.npz"
    arguments = ["study", "mixing-ratio", "--texts", str(jsonl), "--field", "body", "--limit", "4", "--layer", "0"]
    arguments += ["--mask-tokens", "0.5", "--seed", "3", "--resume", str(state), "--csv", str(out), "--table", "layers"]
    assert main(arguments) == 0
    with pytest.warns(studies.ExcludedTextWarning):
        wanted = studies.mixing_ratio(
            bert, studies.TextFile(jsonl, "body"), limit=4, layers=0, mask_tokens=0.5, seed=3
        ).layers_to_dataframe()
    pandas.testing.assert_frame_equal(pandas.read_csv(out), wanted, check_dtype=False)
    said = capsys.readouterr()
    assert "warning: 1 of 4 texts are not in the result: line 1 is not JSON" in said.err and state.exists()


def test_shares_are_put_together(bert, corpus, texts, tmp_path, monkeypatch):
    corpus.write_text("\n".join(texts * 40))  # three chunks
    common, parts = ["study", "frequency", "--texts", str(corpus), "--quiet"], []
    for k in range(2):
        parts.append(str(tmp_path / f"part{k}.npz"))
        assert main([*common, "--share", f"{k}/2", "--resume", parts[-1]]) == 0
    wanted = studies.frequency(bert, texts * 40).to_dataframe()
    monkeypatch.setattr("tl_norms.studies.engine.run.measure_chunk", lambda *given: pytest.fail("measured again"))
    assert main([*common, "--parts", *parts, "--csv", str(tmp_path / "out.csv")]) == 0
    found = pandas.read_csv(tmp_path / "out.csv")
    pandas.testing.assert_frame_equal(found, wanted, check_dtype=False, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study"], "STUDY"),
        (["study", "mixing"], "invalid choice"),
        (["study", "mixing-ratio"], "--texts"),
        (["study", "mixing-ratio", "--texts", "x", "--limit", "0"], "at least 1"),
        (["study", "mixing-ratio", "--texts", "x", "--share", "2/2"], "K from 0 to N - 1"),
        (["study", "frequency", "--texts", "x", "--csv", "/no/such/folder/x.csv"], "no folder"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_bad_input_is_one_line(corpus, tmp_path, capsys):
    assert main(["study", "frequency", "--texts", str(tmp_path / "missing.txt")]) == 2
    assert capsys.readouterr().err.startswith("tl-norms: error: there is no file")
    assert main(["study", "frequency", "--texts", str(tmp_path)]) == 2
    assert "is a folder; give a file (--texts)" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n\n")
    assert main(["study", "frequency", "--texts", str(tmp_path / "empty.txt")]) == 2
    assert "the corpus is empty" in capsys.readouterr().err


def test_files_are_looked_at_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(load, "model_name", lambda given: pytest.fail("a model was looked for"))
    assert main(["study", "frequency", "--texts", str(tmp_path / "missing.txt")]) == 2
    (tmp_path / "corpus.txt").write_text("A text.")
    parts = ["--parts", str(tmp_path / "part.npz")]
    assert main(["study", "frequency", "--texts", str(tmp_path / "corpus.txt"), *parts]) == 2
    assert "(--parts)" in capsys.readouterr().err
    for option in ("--csv", "--resume"):
        with pytest.raises(SystemExit):
            main(["study", "frequency", "--texts", str(tmp_path / "corpus.txt"), option, str(tmp_path)])
        assert f"{option}: {str(tmp_path)!r} is a folder" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from tl_norms.cli.study import parse\nassert 'torch' not in sys.modules\n"
    source = (
        "import sys, types; sys.modules['tl_norms'] = p = types.ModuleType('tl_norms'); p.__path__ = [sys.argv[1]]\n"
    )
    folder = str(Path(studies.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", source + code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_embedded_model_is_known_again_when_loaded_anew(minilm, tmp_path, monkeypatch):
    """Its checkpoint has no head: every loading makes another."""
    (tmp_path / "corpus.txt").write_text("The keys to the cabinet are on the table.\nA cat sat.\n")
    common = ["study", "frequency", "--texts", str(tmp_path / "corpus.txt"), "--quiet", "--layer", "0"]
    state, out = str(tmp_path / "state.npz"), tmp_path / "out.csv"
    assert main([*common, "--resume", state, "--limit", "1"]) == 0
    assert main([*common, "--resume", state]) == 0
    assert main([*common, "--parts", state, "--csv", str(out)]) == 0
    assert len(pandas.read_csv(out))


@pytest.mark.slow
def test_worker_processes_on_a_real_model(minilm, tmp_path, capsys):
    texts = ["The keys to the cabinet are on the table.", "A cat sat.", "It rains, again."]
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    out = tmp_path / "out.csv"
    arguments = ["study", "mixing-ratio", "--texts", str(tmp_path / "corpus.txt"), "--csv", str(out), "--workers", "1"]
    assert main([*arguments, "--quiet"]) == 0
    wanted = studies.mixing_ratio(minilm, texts).to_dataframe()
    pandas.testing.assert_frame_equal(pandas.read_csv(out), wanted, check_dtype=False, atol=1e-5)
    means = wanted.set_index("method")["mean"]
    assert means["Attn-W"] > means["Attn-N"] > means["AttnRes-N"] > means["AttnResLn-N"]
    assert capsys.readouterr().out == ""
