"""--why on the command line: MiniLM's likeness to a sentence, a predicted token, and arguments that do not fit."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from rich.console import Console

import tl_norms
from tl_norms.cli import why
from tl_norms.cli.arguments import parse
from tl_norms.cli.run import main


class Words:
    """A tokenizer of numbers: "3 17 5"."""

    def __call__(self, text, return_tensors=None, add_special_tokens=True, **_):
        (text,) = [text] if isinstance(text, str) else text
        ids = [int(word) for word in text.split()]
        encoded = type("Encoded", (dict,), {})(input_ids=torch.tensor([ids]) if return_tensors else ids)
        encoded.input_ids = encoded["input_ids"]
        return encoded

    def encode(self, text, add_special_tokens=True):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def model():
    if tiny.KINDS[0] != "bridge":
        pytest.skip("only a bridge leaves the text to the tokenizer")
    made = tiny.make("gpt2", tiny.KINDS[0], fresh=True)
    made.model.tokenizer = Words()
    return made


def test_the_prediction_is_explained(model):
    found = why.explained(model.model, "3 17 5 20", token="7", against="#9", at=2)
    logits = model.hf(torch.tensor([[3, 17, 5, 20]])).logits[0, 2].detach()
    assert float(found.attribution.value) == pytest.approx(float(logits[7] - logits[9]))
    numbers = why.numbers(found)
    total = sum(token["value"] for token in numbers["tokens"]) + numbers["offset"]
    assert total == pytest.approx(numbers["value"]) and json.dumps(numbers)
    assert [token["token"] for token in numbers["tokens"]] == ["3", "17", "5", "20"]
    assert numbers["tokens"][3]["value"] == 0, "the position after the prediction gives nothing"
    console = Console(record=True, width=100, highlight=False)
    why.show(found, console)
    printed = console.export_text()
    assert "logit('7') at 2 - logit(9) at 2 = " in printed and "strongest edges" in printed and "(no token" in printed
    for width in (40, 60, 80, 120):
        console = Console(record=True, width=width, highlight=False)
        why.show(replace(found, words=["<|im_start|>", " internationalization", "5", "20"]), console)
        printed = console.export_text()
        assert max(map(len, printed.splitlines())) <= width
        shown = [f"{value:+.4f}" for value in found.attribution.tokens[0].tolist()]
        assert all(number in printed for number in shown) and "<|im_start|>" in printed  # no number is cut
    best = why.explained(model.model, "3 17 5 20").attribution
    first, second = model.hf(torch.tensor([[3, 17, 5, 20]])).logits[0, -1].detach().topk(2).values
    assert float(best.value) == pytest.approx(float(first - second))


def test_tokens_are_those_that_run_with_cache_reads(model, monkeypatch):
    """With the start token that a model puts before a text of its own accord."""
    bridge = model.model
    monkeypatch.setattr(bridge, "to_tokens", lambda text, **_: torch.tensor([[1, *map(int, text.split())]]))
    found = why.explained(bridge, "3 17 5", token="7")
    assert found.words == ["1", "3", "17", "5"]
    logit = model.hf(torch.tensor([[1, 3, 17, 5]])).logits[0, -1, 7].detach()
    assert float(found.attribution.value) == pytest.approx(float(logit))


def test_several_tokens_are_refused_with_what_they_are(model):
    with pytest.raises(tl_norms.TargetError, match="2 tokens for this tokenizer: '7', '8'"):
        why.explained(model.model, "3 17", token="7 8")


def test_likeness_to_a_sentence_is_the_cosine_of_pooled_vectors(minilm, capsys, tmp_path):
    texts = "The keys to the cabinet", "A set of keys"
    with torch.no_grad():
        pooled = [minilm.run_with_cache(text)[1]["blocks.5.hook_out"][0].mean(0) for text in texts]
    expected = float(torch.nn.functional.cosine_similarity(*pooled, dim=0))
    page = tmp_path / "why.html"
    assert main(["--why", "--like", texts[1], "--json", "--html", str(page), texts[0]]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert f"wrote {page}" in printed.err and f"cosine to '{texts[1]}'" in (html := page.read_text(encoding="utf-8"))
    assert f'"text": "{texts[0]}"' in html or f'"text":"{texts[0]}"' in html
    assert found["value"] == pytest.approx(expected, abs=1e-5) and max(found["error"]) < 1e-5
    assert max(found["tokens"], key=lambda token: token["value"])["token"] == "keys"
    assert main(["--why", texts[0]]) == 2
    assert "no head" in (error := capsys.readouterr().err) and "--like" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--logit", " are", "text"],
        ["--why", "--against", " is", "text"],
        ["--why", "--like", "a", "--at", "2", "text"],
        ["--why", "--layer", "3", "text"],
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "--why" in capsys.readouterr().err or "--logit" in " ".join(arguments)


@pytest.mark.parametrize("attention", [None, "held", "integrated"])
@pytest.mark.parametrize("baseline", [None, "17", "#17"])
def test_attention_and_baseline_are_those_of_attribute(model, attention, baseline):
    options = {name: value for name, value in (("attention", attention), ("baseline", baseline)) if value is not None}
    found = why.explained(model.model, "3 17 5 20", token="7", **options).attribution
    with torch.no_grad():
        cache = model.model.run_with_cache(torch.tensor([[3, 17, 5, 20]]))[1]
    rules = {"attention": attention or "held", "baseline": None if baseline is None else 17}
    expected = tl_norms.attribute(cache, tl_norms.logit(7), **rules)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.offset, expected.offset)
    assert (found.nodes == ()) == (attention != "integrated") or all(nodes > 1 for nodes in found.nodes)


def test_attention_and_baseline_on_the_command_line(minilm, capsys):
    arguments = ["--why", "--like", "A set of keys", "--json", "The keys to the cabinet"]
    found = {}
    for name, more in {
        "held": [],
        "integrated": ["--attention", "integrated"],
        "baseline": ["--attention", "integrated", "--baseline", "[MASK]"],
    }.items():
        assert main([*arguments[:3], *more, *arguments[3:]]) == 0
        numbers = found[name] = json.loads(capsys.readouterr().out)
        total = sum(token["value"] for token in numbers["tokens"]) + numbers["offset"]
        assert total == pytest.approx(numbers["value"], abs=1e-5) and max(numbers["error"]) < 2e-5
    values = [[token["value"] for token in numbers["tokens"]] for numbers in found.values()]
    assert values[0] != values[1] != values[2]
    assert found["held"]["value"] == pytest.approx(found["integrated"]["value"], abs=1e-6)
    assert main([*arguments[:3], "--baseline", "no such token", *arguments[3:]]) == 2
    assert "token" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--why", "--attention", "wrong", "text"])
    assert "integrated" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--attention", "integrated", "text"])
    assert "--attention belongs to --why" in capsys.readouterr().err


def test_lines_that_go_to_a_pipe_have_no_blanks_at_their_ends(minilm, capsys, monkeypatch):
    for columns in (60, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["--why", "--like", "A set of keys", "The keys to the cabinet"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 20 and all(line == line.rstrip() for line in lines)
        assert max(map(len, lines)) <= columns and any("█" in line for line in lines)
