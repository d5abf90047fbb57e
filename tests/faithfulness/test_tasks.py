"""Tasks: what the templates say in tokens, what is left out and named, and tables of one's own."""

import json
import sys
import types

import judge_models
import pytest
import tiny
import torch

from tl_norms.errors import MissingExtraError
from tl_norms.faithfulness import FaithfulnessInputError, Target, TaskError, tasks

if "bridge" not in tiny.KINDS:
    pytest.skip("these models are bridges", allow_module_level=True)

TEMPLATES = [name for name in tasks.NAMES if name != "subjects"]


def spelled(model, ids) -> list[str]:
    return [model.tokenizer.decode([number]) for number in ids]


@pytest.mark.parametrize("name", TEMPLATES)
def test_examples_have_evidence_and_a_counterfactual_of_one_other_token(gpt2, name):
    task = tasks.named(name, gpt2, 40)
    assert len(task) == 40 and len({example.text for example in task.examples}) == 40
    for example in task.examples:
        assert example.tokens == tuple(gpt2.to_tokens(example.text)[0].tolist())
        assert len(example.counterfactual) == len(example.tokens) and example.good != example.bad
        changed = [n for n, (a, b) in enumerate(zip(example.tokens, example.counterfactual, strict=True)) if a != b]
        assert len(changed) == 1 and len(example.evidence) == 1 and example.evidence[0] < len(example.tokens) - 1
        if name not in ("ioi", "colours"):  # there the counterfactual asks for another one of two
            assert changed[0] == example.evidence[0]
    assert tasks.named(name, gpt2, 40) == task
    assert tasks.named(name, gpt2, 40, seed=1).examples != task.examples


def word(model, example, which) -> str:
    return spelled(model, [getattr(example, which)])[0]


def test_what_the_examples_say(gpt2):
    plural = {v: k for k, v in {**tasks.templates.words.PLURALS, **tasks.templates.words.PEOPLE}.items()}
    for example in tasks.agreement(gpt2, 30).examples:
        subject = spelled(gpt2, [example.tokens[example.evidence[0]]])[0]
        assert example.text.startswith(f"The {subject}")
        assert word(gpt2, example, "good") in (("are", "were", "have") if subject in plural else ("is", "was", "has"))
    for example in tasks.indirect_object(gpt2, 30).examples:
        names = example.text.replace(",", " ").split()
        giver, good = names[names.index("gave") - 1], word(gpt2, example, "good")
        assert {good, giver} == {names[1], names[3]} and word(gpt2, example, "bad") == giver
    for example in tasks.copying(gpt2, 30).examples:
        listed, again = example.text.removeprefix("The list: ").split(", ")
        assert listed.split()[:-1] == again.split() and listed.split()[-1] == word(gpt2, example, "good")
    for example in tasks.colours(gpt2, 30).examples:
        asked = example.text.split()[-2]
        assert f"The {asked} is {word(gpt2, example, 'good')}." in example.text
    for example in tasks.polarity(gpt2, 30).examples:
        assert (word(gpt2, example, "good") == "ever") == example.text.startswith("No ")
    orders = {
        example.text.split()[1] == word(gpt2, example, "good") for example in tasks.indirect_object(gpt2, 30).examples
    }
    assert orders == {True, False}  # ABBA and BABA


def test_attractors_are_of_the_other_number(gpt2):
    task = tasks.agreement(gpt2, 20, attractors=(4,))
    plural = set(tasks.templates.words.PLURALS.values()) | set(tasks.templates.words.PEOPLE.values())
    for example in task.examples:
        nouns = [part for part in example.text.split()[1:] if part in plural or part in judge_models.words.PLURALS
                 or part in judge_models.words.PEOPLE]  # fmt: skip
        assert len(nouns) == 5 and len({noun in plural for noun in nouns[1:]}) == 1
        assert (nouns[0] in plural) != (nouns[1] in plural)


def test_words_that_are_no_single_tokens_are_named():
    model = judge_models.boot("gpt2", without=("himself", "keys"))
    with pytest.raises(TaskError, match="'himself'"):
        tasks.anaphor_gender(model, 5)
    task = tasks.agreement(model, 5)
    assert task.dropped == ("keys",)
    assert "keys" not in " ".join(example.text for example in task.examples).split()


def test_a_model_without_tokenizer():
    model = tiny.make("gpt2", "bridge").model
    if getattr(model, "tokenizer", None) is None:
        with pytest.raises(TaskError, match="no tokenizer"):
            tasks.agreement(model, 5)


@pytest.mark.parametrize("n", [0, -1])
def test_no_examples(gpt2, n):
    with pytest.raises(TaskError, match="at least one"):
        tasks.agreement(gpt2, n)


def test_a_task_that_does_not_exist(gpt2):
    with pytest.raises(FaithfulnessInputError, match="no task 'sentiment'.*agreement"):
        tasks.named("sentiment", gpt2)


ROWS = [
    {"prefix": "The keys near the car", "good": "are", "bad": "is", "evidence": "keys"},
    {"prefix": "The key near the cars", "good": "is", "bad": "are", "evidence": "NA"},
    {"prefix": "The boy near the car", "good": "sings", "bad": "is", "evidence": "boy"},
    {"prefix": "The dog behind the car", "good": "is", "bad": "are", "evidence": "horse"},
    {"prefix": " ", "good": "is", "bad": "are", "evidence": "horse"},
    {"prefix": "The cat by the tree", "good": "is", "bad": "is", "evidence": "cat"},
    {"prefix": "The cats by the tree", "good": "are", "bad": "is", "evidence": ["cats", "tree"]},
]


def test_rows_of_ones_own(gpt2, tmp_path):
    task = tasks.from_rows(ROWS, gpt2)
    assert len(task) == 2 and task.examples[0].evidence == (2,) and task.examples[1].evidence == (2, 5)
    assert spelled(gpt2, [task.examples[0].good, task.examples[0].bad]) == ["are", "is"]
    reasons = [(row.name, row.reason) for row in task.excluded]
    assert [name for name, _ in reasons] == ["row 1", "row 2", "row 3", "row 4", "row 5"]
    wanted = (
        "no evidence is given",
        "'sings' is no single token",
        "'horse' is not in the prefix",
        "is empty",
        "both 'is'",
    )
    for (_, reason), part in zip(reasons, wanted, strict=True):
        assert part in reason
    file = tmp_path / "mine.csv"
    file.write_text('text,right,wrong,why\n"The keys, near the car",are,is,keys\n', encoding="utf-8")
    named = tasks.from_rows(file, gpt2, prefix="text", good="right", bad="wrong", evidence="why")
    assert named.name == "mine" and named.examples[0].text == "The keys, near the car"
    lines = tmp_path / "mine.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert tasks.from_rows(lines, gpt2).examples == task.examples
    assert tasks.from_rows(ROWS, gpt2, limit=1).examples == task.examples[:1]
    assert tasks.from_rows(ROWS, gpt2, evidence=None).examples[0].evidence == ()


def test_rows_with_a_counterfactual(gpt2):
    rows = [{"prefix": "The keys", "good": "are", "bad": "is", "evidence": "keys", "other": other}
            for other in ("The key", "The old key")]  # fmt: skip
    task = tasks.from_rows(rows, gpt2, counterfactual="other")
    assert task.examples[0].counterfactual == tuple(gpt2.to_tokens("The key")[0].tolist())
    assert "has 4 tokens, the prefix 3" in task.excluded[0].reason


def test_tables_that_cannot_be_read(gpt2, tmp_path):
    with pytest.raises(TaskError, match="there is no file"):
        tasks.from_rows(tmp_path / "gone.csv", gpt2)
    with pytest.raises(TaskError, match="no column 'bad'; it has prefix, good"):
        tasks.from_rows([{"prefix": "The keys", "good": "are"}], gpt2)
    with pytest.raises(TaskError, match="none of the 1 rows.*no single token"):
        tasks.from_rows([ROWS[2]], gpt2)
    broken = tmp_path / "broken.jsonl"
    broken.write_text("no json", encoding="utf-8")
    with pytest.raises(TaskError, match="no jsonl file"):
        tasks.from_rows(broken, gpt2)


def test_pairs_of_sentences_up_to_the_first_other_word(gpt2, monkeypatch):
    rows = [
        {"sentence_good": "The keys near the car are old.", "sentence_bad": "The keys near the car is old."},
        {"sentence_good": "The keys are old.", "sentence_bad": "No keys are old."},
    ]
    asked = []
    fake = types.SimpleNamespace(load_dataset=lambda *given, **options: asked.append((given, options)) or rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    task = tasks.from_datasets("nyu-mll/blimp", "agreement_1", gpt2)
    assert asked == [(("nyu-mll/blimp", "agreement_1"), {"split": "train"})]
    assert task.name == "agreement_1" and task.examples[0].text == "The keys near the car"
    assert spelled(gpt2, [task.examples[0].good, task.examples[0].bad]) == ["are", "is"]
    assert task.excluded[0].name == "pair 1" and task.examples[0].evidence == ()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="pip install datasets"):
        tasks.from_datasets("nyu-mll/blimp", "agreement_1", gpt2)


def test_next_token_is_the_models_own_choice(gpt2):
    task = tasks.next_token(["The keys", "No boys near the car", ""], gpt2)
    assert len(task) == 2 and task.excluded[0].name == "text 2"
    for example in task.examples:
        logits = gpt2(torch.tensor([example.tokens]))[0, -1]
        assert int(logits.argmax()) == example.good
        assert float(Target(example.good, example.bad).of(gpt2, torch.tensor([example.tokens])).detach()) > 0


def test_a_probe_is_trained_on_the_spot(bert):
    task = tasks.subjects(bert, 24, train=48)
    probe = task.probe
    assert probe.names == ("food", "music", "sport", "travel") and 0.25 < probe.accuracy <= 1
    right = 0
    for example in task.examples:
        ids = torch.tensor([example.tokens])
        states = bert.original_model.bert(ids).last_hidden_state
        logits = (states.mean(1).float() @ probe.weight.T + probe.bias)[0]
        target = task.target(example)
        value = float(target.of(bert, ids).detach())
        assert value == pytest.approx(float((logits[example.good] - logits[example.bad]).detach()), abs=1e-4)
        others = logits.detach().clone()
        others[example.good] = -torch.inf
        assert example.bad == int(others.argmax())  # the strongest other class
        right += value > 0
        chosen = set(spelled(bert, [example.tokens[place] for place in example.evidence]))
        assert len(chosen) == 2 and chosen <= set(tasks.probing.SUBJECTS[probe.names[example.good]])
    assert right / len(task) == pytest.approx(probe.accuracy)
    assert repr(tasks.subjects(bert, 24, train=48).probe) == repr(probe)
