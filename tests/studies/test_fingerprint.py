"""A file to resume from sees everything that determines numbers, and nothing else."""

import functools
import operator
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import study_models
import torch

from tl_norms import studies
from tl_norms.studies.engine.fingerprint import model_facts, tokenizer
from tl_norms.studies.engine.words import told

CORPUS = ["w7 w8 , w9", "w10 w11"]
MODE = "a"


def changed(before: dict[str, str], model) -> list[str]:
    return [name for name, value in model_facts(model).items() if before[name] != value]


@pytest.fixture
def fresh():
    return study_models.bert()


def test_another_loading_and_a_run_change_nothing(fresh):
    facts = model_facts(fresh)
    assert not changed(facts, study_models.bert())
    studies.contextualization_change(fresh, CORPUS)
    fresh.tokenizer(CORPUS, padding=True, truncation=True, max_length=4)
    assert not changed(facts, fresh)


@pytest.mark.parametrize("part", ["attn.o.weight", "attn.q.bias", "mlp.in.weight", "ln2.weight", "pos_embed.weight"])
def test_one_changed_value_of_any_weight_is_seen(fresh, part):
    facts = model_facts(fresh)
    weight = next(value for name, value in fresh.state_dict().items() if name.endswith(part))
    with torch.no_grad():
        flat = weight.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0, dtype=flat.dtype))
    assert changed(facts, fresh) == ["model"]


def test_exchanged_rows_are_seen(fresh):
    """Sums would not see it."""
    facts = model_facts(fresh)
    weight = next(value for name, value in fresh.state_dict().items() if name.endswith("mlp.out.weight"))
    with torch.no_grad():
        weight[[3, 4]] = weight[[4, 3]]
    assert changed(facts, fresh) == ["model"]


def test_eps_is_seen_in_the_modules_and_in_the_configuration(fresh):
    facts = model_facts(fresh)
    norm = next(module for module in fresh.modules() if isinstance(module, torch.nn.LayerNorm))
    kept, norm.eps = norm.eps, norm.eps * 1000
    assert changed(facts, fresh) == ["model's configuration"]
    norm.eps = kept
    assert not changed(facts, fresh)
    config = getattr(getattr(fresh, "original_model", fresh), "config", fresh.cfg)
    name = next(name for name in ("layer_norm_eps", "eps") if hasattr(config, name))
    setattr(config, name, 0.5)
    assert changed(facts, fresh) == ["model's configuration"]


def test_the_tokenizer_is_seen():
    plain = study_models.tokenizer(True)
    assert tokenizer(plain) == tokenizer(study_models.tokenizer(True)) != tokenizer(study_models.tokenizer(False))
    more = study_models.tokenizer(True)
    more.add_tokens(["w99"])
    short = study_models.tokenizer(True)
    short.model_max_length = 12
    assert len({tokenizer(one) for one in (plain, more, short, None)}) == 4


def test_hooks_are_refused_as_nobody_knows_what_they_do(fresh, tmp_path):
    name = next(name for name in fresh.hook_dict if name.endswith("hook_mlp_out") or name.endswith("mlp.hook_out"))
    fresh.hook_dict[name].add_hook(lambda value, hook: value * 2)
    try:
        studies.frequency(fresh, CORPUS)
        with pytest.raises(studies.StudyInputError, match=r"has hooks, .*model.reset_hooks"):
            studies.frequency(fresh, CORPUS, resume=tmp_path / "state.npz")
    finally:
        fresh.hook_dict[name].remove_hooks()
    studies.frequency(fresh, CORPUS, resume=tmp_path / "state.npz")


def made(name: str):
    return lambda tokenizer, ids: [name] * len(ids)


class Named:
    def __init__(self, name):
        self.name = name

    def __call__(self, tokenizer, ids):
        return [self.name] * len(ids)

    def method(self, tokenizer, ids):
        return [self.name] * len(ids)


def by_global(tokenizer, ids):
    return [MODE] * len(ids)


def by_default(tokenizer, ids, name="a"):
    return [name] * len(ids)


def by_set(tokenizer, ids):
    return ["x" if number in {"a", "b", "c", 1} else "y" for number in ids]


def test_functions_are_told_apart_by_what_they_do(monkeypatch):
    different = [
        lambda tokenizer, ids: ["a"] * len(ids),
        lambda tokenizer, ids: ["b"] * len(ids),
        lambda tokenizer, ids: ["a"] * (len(ids) + 0),
        made("a"),
        made("b"),
        functools.partial(by_default, name="a"),
        functools.partial(by_default, name="b"),
        functools.partial(made, "a"),
        Named("a"),
        Named("b"),
        Named("a").method,
        Named("b").method,
        by_default,
        by_global,
        functools.lru_cache(by_default),
        functools.lru_cache(by_global),
        operator.itemgetter(1),
        operator.itemgetter(2),
        str.split,
        "a".split,
        len,
        studies.token_types,
        studies.token_categories,
        Named,
        np.argsort,
        re.compile("a").sub,
        re.compile("b").sub,
    ]
    told_of = [told("types", function) for function in different]
    assert len(set(told_of)) == len(different)
    assert told("types", made("a")) == told_of[3] and told("types", Named("a")) == told_of[8]
    monkeypatch.setitem(globals(), "MODE", "b")
    assert told("types", by_global) != told_of[13]
    monkeypatch.setattr(by_default, "__defaults__", ("b",))
    assert told("types", by_default) != told_of[12]


@pytest.mark.parametrize("hidden", [threading.Lock(), sys.stderr, (n for n in "ab")], ids=["lock", "file", "generator"])
def test_what_cannot_be_told_apart_is_refused(bert, tmp_path, hidden):
    def types(tokenizer, ids):
        return [str(hidden)[:3]] * len(ids)

    studies.mixing_ratio(bert, CORPUS, types=types)
    with pytest.raises(studies.StudyInputError, match="types= cannot be distinguished .* hidden = a .*n.version"):
        studies.mixing_ratio(bert, CORPUS, types=types, resume=tmp_path / "state.npz")
    types.version = "1"
    studies.mixing_ratio(bert, CORPUS, types=types, resume=tmp_path / "state.npz")
    types.version = "2"
    with pytest.raises(studies.ResumeError, match="another study"):
        studies.mixing_ratio(bert, CORPUS, types=types, resume=tmp_path / "state.npz")


@pytest.mark.slow
def test_facts_are_the_same_in_another_process(fresh):
    """Whatever seed Python hashes strings with."""
    here = [*model_facts(fresh).values(), told("types", by_set), told("types", made("a")), told("types", Named("a"))]
    code = (
        "import study_models, test_fingerprint as t\n"
        "given = [*t.model_facts(study_models.bert()).values()]\n"
        "given += [t.told('types', one) for one in (t.by_set, t.made('a'), t.Named('a'))]\n"
        "print('\\n'.join(given))"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(studies.__file__).parents[2])]
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.splitlines()[-len(here) :] == here, done.stderr


def test_a_file_that_does_not_fit_says_what_it_was_made_with(fresh, tmp_path):
    file = tmp_path / "state.npz"
    studies.mixing_ratio(fresh, CORPUS, types=made("a"), layers=1, resume=file)
    with pytest.raises(studies.ResumeError) as error:
        studies.mixing_ratio(fresh, CORPUS, types=made("b"), max_length=9, resume=file)
    said = str(error.value)
    assert "belongs to another study, another options. It was made with Python 3" in said
    assert f"torch {torch.__version__.partition('+')[0]}" in said and "layers=(1)" in said
    assert "BertForMaskedLM, 2 layers of 32" in said or "HookedEncoder, 2 layers of 32" in said
    assert "max_length=9" in said and "max_length=None" in said
    with pytest.raises(studies.ResumeError, match="another model. It was made with"):
        with torch.no_grad():
            next(value for name, value in fresh.state_dict().items() if name.endswith("ln1.bias"))[5] += 1
        studies.mixing_ratio(fresh, CORPUS, types=made("a"), layers=1, resume=file)


def test_a_file_of_an_older_format_says_so(fresh, tmp_path):
    file = tmp_path / "state.npz"
    studies.frequency(fresh, CORPUS, resume=file)
    with np.load(file) as kept:
        arrays = dict(kept)
    name = next(name for name in arrays if "version" in name)
    arrays[name] = np.array("2")
    np.savez(file, **{key: value for key, value in arrays.items() if key != "made"})
    with pytest.raises(studies.ResumeError, match="another version of the format. It was made with an older version"):
        studies.frequency(fresh, CORPUS, resume=file)
