"""Alignment error rates over a corpus: what `align` and `alignment_error_rate` give, whatever way it is measured."""

import dataclasses
import functools
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas
import pytest
import study_models
import translation_models as models

import tl_norms
from tl_norms import alignment, studies
from tl_norms.__main__ import main
from tl_norms.alignment import AlignmentInputError, EncodedPair, GoldLinks
from tl_norms.cli import load

pytest.importorskip("transformer_lens.model_bridge", reason="this TransformerLens has no bridges")

GOLD = alignment.read_pharaoh(
    ["0-0 1-1 2-2 3-3", "0p3 1-0 1-1 2p1 3-2 4-3 5-4 6p5", "0-0 1p1 2-3", "0-0", "0-0 1p5 2-1 3-2 4-3 5-4 6-8"]
)
CORPUS, LINKS = models.PAIRS * 3, GOLD * 3


@pytest.fixture(scope="module")
def marian():
    return models.marian()


@pytest.fixture(scope="module")
def wanted(marian):
    return studies.alignment(marian, CORPUS, LINKS, chunk=4)


def same(left, right) -> bool:
    """To the last bit, as chunks are merged in order."""
    return (
        np.array_equal(left.counts, right.counts)
        and np.array_equal(left.mean_norms, right.mean_norms)
        and (left.n_sure, left.layers, left.settings, left.corpus)
        == (right.n_sure, right.layers, right.settings, right.corpus)
    )


def test_rates_are_those_of_the_links(marian, wanted):
    found = alignment.align(marian, CORPUS)
    for s, setting in enumerate(("AWO", "AWI")):
        for m, method in enumerate(("weight", "norm")):
            for layer in (0, 1):
                for head in (None, 0, 1, 2, 3):
                    rate = alignment.alignment_error_rate(found.links(setting, method, layer, head), LINKS)
                    assert wanted.rate(setting, method, layer, head) == rate
                    there = wanted.aer[s, m, layer] if head is None else wanted.head_aer[s, m, layer, head]
                    assert there == rate.aer
    assert len(np.unique(wanted.head_aer)) > 10, "the rates hardly differ: they test nothing"
    assert wanted.n_sure == 3 * 18 and wanted.corpus.n_texts == 15


def test_mean_norms_are_over_steps_and_source_positions(marian, wanted):
    total, n = np.zeros((2, 4)), 0
    for pair in models.PAIRS:
        found = alignment.encode_pair(marian.tokenizer, alignment.SentencePair(*(tuple(side.split()) for side in pair)))
        source, target, options = alignment.teacher_forced(marian, [found])
        assert target.shape[1] == len(found.target), "the start and all but the end of sentence"
        _, cache = marian.run_with_cache(source, decoder_input=target, **options)
        from tl_norms import cross_norms

        total += cross_norms(cache).head_norms[:, 0].sum((-1, -2)).numpy()
        n += source.shape[1] * target.shape[1]
    np.testing.assert_allclose(wanted.mean_norms, total / n, rtol=1e-6)
    assert wanted.strongest_layer() == (total.sum(1)).argmax()
    assert wanted.strongest_head() == tuple(np.unravel_index(total.argmax(), (2, 4)))


def test_tables(wanted):
    layers, heads = wanted.to_dataframe(), wanted.heads_to_dataframe()
    assert len(layers) == 2 * 2 * 2 and len(heads) == 2 * 2 * 2 * 4
    row = heads[(heads.setting == "AWI") & (heads.method == "norm") & (heads.layer == 1) & (heads["head"] == 2)].iloc[0]
    rate = wanted.rate("AWI", "norm", 1, 2)
    assert (row.aer, row.precision, row.recall) == (rate.aer, rate.precision, rate.recall)
    assert row.mean_norm == wanted.mean_norms[1, 2]
    row = layers[(layers.setting == "AWO") & (layers.method == "weight") & (layers.layer == 0)].iloc[0]
    assert row.aer == wanted.rate("AWO", "weight", 0).aer and row.mean_norm == wanted.mean_norms[0].sum()
    summary = wanted.summary_to_dataframe().set_index(["setting", "method", "of"])
    assert len(summary) == 2 * (3 + 4)
    weights = wanted.aer[0, 0]
    assert summary.loc[("AWO", "weight", "layer mean"), "aer"] == pytest.approx(weights.mean())
    assert tuple(summary.loc[("AWO", "weight", "best layer"), ["layer", "aer"]]) == (weights.argmin(), weights.min())
    strong, (layer, head) = wanted.strongest_layer(), wanted.strongest_head()
    assert tuple(summary.loc[("AWI", "norm", "highest norm, layer"), ["layer", "aer"]]) == (
        strong,
        wanted.aer[1, 1, strong],
    )
    assert tuple(summary.loc[("AWI", "norm", "highest norm, head"), ["layer", "head", "aer"]]) == (
        layer,
        head,
        wanted.head_aer[1, 1, layer, head],
    )
    correlations = wanted.correlations().set_index("setting")
    pairs = pandas.DataFrame({"x": wanted.head_aer[1, 1].ravel(), "y": wanted.mean_norms.ravel()})
    for method in ("spearman", "pearson"):
        assert correlations.loc["AWI", method] == pytest.approx(pairs.corr(method)["x"]["y"])


def test_the_strongest_layer_need_not_have_the_strongest_head(wanted):
    """Sums over heads: 3 and 4; the greatest head is in the other layer."""
    found = dataclasses.replace(
        wanted, layers=(2, 5), mean_norms=np.array([[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    )
    assert found.strongest_layer() == 5 and found.strongest_head() == (2, 1)


def test_options(marian, wanted):
    one = studies.alignment(marian, CORPUS, LINKS, layers=[-1], settings="AWI")
    assert one.layers == (1,) and one.settings == ("AWI",)
    assert np.array_equal(one.counts[0], wanted.counts[1][:, 1:]) and one.mean_norms == pytest.approx(
        wanted.mean_norms[1:]
    )
    words = studies.alignment(marian, CORPUS, LINKS, end_of_sentence=False)
    n_words = sum(len(target.split()) for _, target in CORPUS)
    assert (words.counts[..., 0] == n_words).all() and (wanted.counts[..., 0] < n_words).any()
    few = studies.alignment(marian, CORPUS, LINKS, limit=2)
    assert few.corpus.n_texts == 2 and few.n_sure == 9
    sets = studies.alignment(marian, CORPUS, [gold.sure for gold in LINKS])
    assert (sets.counts[..., 1] == sets.counts[..., 2]).all() and sets.n_sure == wanted.n_sure


class Interrupted(Exception):
    pass


def stopping(n: int):
    yield from CORPUS[:n]
    raise Interrupted


def test_resuming(marian, wanted, tmp_path):
    file = tmp_path / "state.npz"
    with pytest.raises(Interrupted):
        studies.alignment(marian, stopping(9), iter(LINKS), chunk=4, resume=file)
    before = file.read_bytes()
    with pytest.raises(studies.ResumeError, match="another corpus"):
        studies.alignment(marian, CORPUS, [GoldLinks({(0, 0)}), *LINKS[1:]], chunk=4, resume=file)
    with pytest.raises(studies.ResumeError, match="another study"):
        studies.alignment(marian, CORPUS, LINKS, end_of_sentence=False, resume=file)
    assert file.read_bytes() == before
    assert same(studies.alignment(marian, CORPUS, LINKS, chunk=4, resume=file), wanted)
    assert same(studies.alignment(marian, iter(CORPUS), iter(LINKS), chunk=4, resume=file), wanted)  # nothing is left


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_executors(marian, wanted, processes):
    if processes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            found = studies.alignment(models.marian, CORPUS, LINKS, chunk=4, executor=executor)
    else:
        with ThreadPoolExecutor(2) as executor:
            found = studies.alignment(marian, CORPUS, LINKS, chunk=4, executor=executor)
    # the worker's own tokenizer comes from a folder of its own, the numbers are the same
    assert same(found, wanted)


def test_pairs_that_do_not_fit_are_left_out(marian):
    long = ("wald", " ".join(["."] * 40))
    bad = EncodedPair((1,), (100,), (0,), (0,))
    pairs = [CORPUS[0], long, ("", "river"), CORPUS[1], bad]
    gold = [LINKS[0], GoldLinks({(0, 0)}), set(), LINKS[1], set()]
    with pytest.warns(studies.ExcludedTextWarning, match="3 of 5 texts are not in the result: pair 1 has 81 tokens"):
        found = studies.alignment(marian, pairs, gold)
    reasons = [(text.name, text.reason) for text in found.corpus.excluded]
    assert reasons[1:] == [
        ("pair 2", "cannot be read (the source has no words)"),
        ("pair 4", "holds token id 100, outside the vocabulary of 100"),
    ]
    whole = studies.alignment(marian, CORPUS[:2], LINKS[:2])
    assert np.array_equal(found.counts, whole.counts) and found.n_sure == whole.n_sure, "their gold does not count"


def test_bad_input(marian, tmp_path):
    def raises(said, *arguments, error=AlignmentInputError, **options):
        with pytest.raises(error, match=said):
            studies.alignment(*arguments, **options)

    raises("15 sentence pairs and 14 sets of gold links", marian, CORPUS, LINKS[:-1])
    raises("at least 14 sentence pairs and at least 15 sets", marian, iter(CORPUS[:-1]), iter(LINKS))
    raises("at least 15 sentence pairs and at least 14 sets", marian, iter(CORPUS), iter(LINKS[:-1]))
    raises("pair 1: the gold link 7-0 is out of range: the source has 7", marian, CORPUS[:2], [LINKS[0], {(7, 0)}])
    raises("pair 0: the gold link 0-4 is out of range", marian, CORPUS[:1], [GoldLinks(frozenset(), {(0, 4)})])
    raises("links of pair 0 are", marian, CORPUS[:1], ["0-0"])
    raises("pairs is str; expected one thing per sentence pair.*read_pairs", marian, "pairs.txt", LINKS)
    raises("gold is GoldLinks", marian, CORPUS, LINKS[0])
    raises("pair 0 is int", marian, [1], [set()])
    raises("expected 'AWO'", marian, CORPUS, LINKS, settings=())
    raises("max_length is 5", marian, CORPUS, LINKS, max_length=5, error=studies.StudyInputError)
    raises("corpus is empty", marian, [], [], error=studies.StudyInputError)
    raises("is no encoder-decoder", study_models.gpt2(), CORPUS, LINKS)
    raises("is no encoder-decoder", study_models.gpt2, CORPUS, LINKS)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "load", lambda name, dtype: models.marian())
    monkeypatch.setattr(load, "model_name", lambda given: given)
    (tmp_path / "pairs.txt").write_text("".join(f"{a} ||| {b}\n" for a, b in models.PAIRS))
    alignment.write_pharaoh(GOLD, tmp_path / "gold.talp", one_based=True)
    alignment.write_naacl(GOLD, tmp_path / "gold.naacl", reverse=True)
    return tmp_path, ["study", "alignment", "--model", "tiny", "--pairs", str(tmp_path / "pairs.txt")]


def test_command_line(marian, files, capsys):
    folder, command = files
    out = folder / "out.csv"
    assert (
        main([*command, "--gold", str(folder / "gold.talp"), "--one-based", "--csv", str(out), "--table", "heads"]) == 0
    )
    wanted = studies.alignment(marian, models.PAIRS, GOLD)
    compare = functools.partial(pandas.testing.assert_frame_equal, check_dtype=False)
    compare(pandas.read_csv(out), wanted.heads_to_dataframe())
    said = capsys.readouterr().out
    assert f"5 sentence pairs, {wanted.corpus.n_tokens} tokens" in said and "mean_norm" in said
    more = ["--setting", "AWI", "--layer", "0", "--words-only", "--source-prefix", "wald", "--limit", "4", "--quiet"]
    more += ["--table", "heads"]
    more += [
        "--gold",
        str(folder / "gold.naacl"),
        "--reverse",
        "--resume",
        str(folder / "state.npz"),
        "--csv",
        str(out),
    ]
    assert main([*command, *more]) == 0
    options = dict(settings="AWI", layers=0, end_of_sentence=False, source_prefix="wald", limit=4)
    tables = []
    for changed in ({}, {"end_of_sentence": True}, {"source_prefix": ""}, {"limit": 5}):
        tables.append(studies.alignment(marian, models.PAIRS, GOLD, **options | changed).heads_to_dataframe())
    compare(pandas.read_csv(out), tables[0])
    assert not any(tables[0].equals(other) for other in tables[1:]), "an option changes nothing: it is not tested"
    assert (folder / "state.npz").exists() and capsys.readouterr().out == ""
    for table in ("summary", "correlations"):
        chosen = ["--gold", str(folder / "gold.naacl"), "--reverse", "--gold-format", "naacl", "--table", table]
        assert main([*command, *chosen]) == 0


def test_command_line_errors(files, capsys):
    folder, command = files
    assert main([*command, "--gold", str(folder / "gold.talp")]) == 2
    assert "out of range" in (said := capsys.readouterr().err) and "--one-based" in said and said.count("\n") == 1
    assert main([*command, "--gold", str(folder / "missing")]) == 2
    assert "there is no file" in capsys.readouterr().err
    (folder / "gold.short").write_text("0-0\n")
    assert main([*command, "--gold", str(folder / "gold.short")]) == 2
    assert "links of 1 sentence pairs, but there are 5" in capsys.readouterr().err
    for missing in ("--model", "--pairs", "--gold"):
        given = [*command, "--gold", str(folder / "gold.talp")]
        at = given.index(missing)
        with pytest.raises(SystemExit) as stop:
            main(given[:at] + given[at + 2 :])
        assert stop.value.code == 2 and missing in capsys.readouterr().err


def test_error_rates_are_kept_in_a_file(wanted, tmp_path):
    wanted.save(tmp_path / "rates.safetensors")
    again = tl_norms.load(tmp_path / "rates.safetensors")
    np.testing.assert_equal(again.counts, wanted.counts)
    assert again.strongest_head() == wanted.strongest_head() and again.corpus == wanted.corpus
    assert again.to_dataframe().equals(wanted.to_dataframe())
