"""What a corpus may be, what of it is refused, and that neither padding nor windows change numbers."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import study_models
import torch

from tl_norms import studies
from tl_norms.studies.categories import token_types
from tl_norms.studies.engine.corpus import Corpus, Item
from tl_norms.studies.engine.measuring import measure_chunk
from tl_norms.studies.engine.study import Reading
from tl_norms.studies.engine.tokens import batches, masked, special_ids, windows
from tl_norms.studies.mixing import _Study as MixingStudy


def ratios(model, texts, **options) -> np.ndarray:
    return studies.mixing_ratio(model, texts, **options).by_layer


def test_all_kinds_of_corpora_give_the_same(bert, texts):
    wanted = ratios(bert, texts)
    ids = [bert.tokenizer(text)["input_ids"] for text in texts]
    padded = bert.tokenizer(texts, padding=True, return_tensors="pt")
    datasets = pytest.importorskip("datasets")
    for corpus in (
        (text for text in texts),
        [{"text": text} for text in texts],
        datasets.Dataset.from_dict({"text": texts}),
        ids,
        [torch.tensor(row) for row in ids],
        [dict(padded)],
        [dict(bert.tokenizer(text)) for text in texts],
    ):
        assert np.allclose(ratios(bert, corpus), wanted, rtol=1e-12)
    assert np.allclose(ratios(bert, [{"body": text} for text in texts], field="body"), wanted, rtol=1e-12)
    same_length = [row for row in ids if len(row) == len(ids[0])]
    assert np.allclose(ratios(bert, [torch.tensor(same_length)]), ratios(bert, same_length), rtol=1e-12)


def test_pairs_of_texts_have_two_token_types(bert):
    pair, ids = ratios(bert, [("w7 w8", "w9 w10 ,")]), bert.tokenizer("w7 w8", "w9 w10 ,")
    assert list(ids["token_type_ids"]) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert np.allclose(pair, ratios(bert, [dict(ids)]))
    assert not np.allclose(pair, ratios(bert, [ids["input_ids"]]))


@pytest.mark.parametrize("options", [{"batch_tokens": 1}, {"batch_tokens": 20}, {"chunk": 1}, {"chunk": 2}])
def test_numbers_do_not_depend_on_batches_and_padding(model, texts, options):
    assert np.allclose(ratios(model, texts, **options), ratios(model, texts), rtol=1e-12)


def test_what_stands_in_the_padding_does_not_matter(model, texts):
    rows = [windows(model, Item(n, "", text))[0] for n, text in enumerate(texts)]
    (batch,) = batches(rows, 10_000)
    study = MixingStudy(None, token_types, 1000, False)
    before = study.measure(model, batch)["all"]
    assert not batch.mask.all()
    batch.ids[~batch.mask] = 17
    assert np.allclose(study.measure(model, batch)["all"].mean, before.mean, rtol=1e-12)


@pytest.mark.parametrize("given", [[], iter(()), (text for text in ())])
def test_an_empty_corpus_is_an_error(bert, given):
    with pytest.raises(studies.StudyInputError, match="empty"):
        studies.mixing_ratio(bert, given)


@pytest.mark.parametrize("given", ["one text", b"bytes", {"a": "mapping"}, 7])
def test_what_is_no_corpus(bert, given):
    with pytest.raises(studies.StudyInputError, match="expected an iterable"):
        studies.mixing_ratio(bert, given)


def test_texts_that_cannot_be_read_are_named_and_the_rest_goes_on(bert, texts):
    bad = [None, 3.5, "", " ", [], [-1], [61], [[1, 2], [1]], {"other": "w7"}, {"text": None}, {"input_ids": "x"}]
    with pytest.warns(studies.ExcludedTextWarning, match=f"{len(bad)} of {len(bad) + len(texts)} texts"):
        found = studies.mixing_ratio(bert, [*texts[:3], *bad, *texts[3:]])
    assert np.allclose(found.by_layer, ratios(bert, texts))
    assert [text.index for text in found.corpus.excluded] == list(range(3, 3 + len(bad)))
    reasons = {text.index - 3: text.reason for text in found.corpus.excluded}
    assert reasons[2] == "is empty" and "outside the vocabulary of 61" in reasons[6] and "no field 'text'" in reasons[8]
    assert found.corpus.n_texts == len(texts) and all(reasons.values())
    with pytest.raises(studies.StudyInputError, match="none of the 2 texts .* text 0 is empty"):
        studies.mixing_ratio(bert, ["", ""])


def test_files_of_lines_and_of_objects(bert, texts, tmp_path):
    plain, objects = tmp_path / "corpus.txt", tmp_path / "corpus.jsonl"
    lines = [text.encode() for text in texts]
    plain.write_bytes(b"\n\n".join([*lines[:2], b"\xff\xfe broken", *lines[2:]]) + b"\r\n")
    rows = [json.dumps({"body": text}).encode() for text in texts]
    objects.write_bytes(b"\n".join([b"{broken", *rows, b'{"text": "w7"}', b"[1]"]))
    wanted = ratios(bert, texts)
    with pytest.warns(studies.ExcludedTextWarning, match="line 5 is not UTF-8"):
        assert np.allclose(ratios(bert, studies.TextFile(plain)), wanted)
    with pytest.warns(studies.ExcludedTextWarning):
        found = studies.mixing_ratio(bert, studies.TextFile(objects, "body"))
    assert np.allclose(found.by_layer, wanted)
    assert [text.name for text in found.corpus.excluded] == ["line 1", "line 9", "line 10"]
    assert [text.reason.split(" (")[0] for text in found.corpus.excluded][0] == "is not JSON"
    with pytest.raises(studies.StudyInputError, match="no file"):
        studies.TextFile(tmp_path / "missing.txt")


def test_long_texts_are_cut_off_with_a_warning(model, texts):
    long = " ".join(f"w{7 + n % 54}" for n in range(70))
    with pytest.warns(studies.TruncatedTextWarning, match="1 of 2 texts"):
        found = studies.mixing_ratio(model, [long, texts[0]])
    n_special = len(study_models.tokens(model, "w7")[0]) - 1
    kept = " ".join(long.split()[: 32 - n_special])
    assert np.allclose(found.by_layer, ratios(model, [kept, texts[0]]))
    assert found.corpus.n_truncated == 1
    with pytest.warns(studies.TruncatedTextWarning):
        short = studies.mixing_ratio(model, [long], max_length=10)
    assert short.corpus.n_tokens == 10


@pytest.mark.parametrize("stride", [1, 5, 8])
def test_windows_cover_each_token_once(model, stride):
    words = [f"w{7 + n}" for n in range(23)]
    whole = study_models.tokens(model, " ".join(words))[0].tolist()
    found = windows(model, Item(4, "", " ".join(words)), max_length=10, stride=min(stride, 10 - len(whole) + 23))
    counted = [i for window in found for i, keep in zip(window.ids, window.counted, strict=True) if keep]
    assert counted == whole and all(len(window.ids) <= 10 for window in found) and len(found) > 1
    assert all(window.ids[0] == whole[0] and window.ids[-1] == whole[-1] for window in found if whole[-1] == 2)
    assert [window.window for window in found] == list(range(len(found))) and not any(w.truncated for w in found)


def test_a_window_is_measured_as_the_text_it_is(bert):
    words = [f"w{7 + n}" for n in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = studies.contextualization_change(bert, [" ".join(words)], max_length=8, stride=6)
    parts = studies.contextualization_change(bert, [" ".join(words[:6]), " ".join(words[6:])])
    assert np.allclose(found.values, parts.values) and found.corpus.n_windows == 2 and found.corpus.n_texts == 1
    with pytest.raises(studies.StudyInputError, match="room for 6 besides special ones"):
        studies.mixing_ratio(bert, [" ".join(words)], max_length=8, stride=7)


def test_masking_is_seeded_and_takes_the_share_asked_for(bert, texts):
    special = special_ids(bert.tokenizer)
    for n, text in enumerate(texts):
        row = windows(bert, Item(n, "", text))[0]
        n_free = sum(i not in special for i in row.ids)
        for share in (0.12, 0.5):
            made = masked(row, bert.tokenizer, share, 0)
            changed = [p for p, (a, b) in enumerate(zip(row.ids, made.ids, strict=True)) if a != b]
            assert len(changed) == max(1, int(share * n_free)) and all(made.ids[p] == 3 for p in changed)
            assert all(row.ids[p] not in special for p in changed)
    first, again = (studies.mixing_ratio(bert, texts, mask_tokens=0.12, chunk=chunk) for chunk in (2, 7))
    other = studies.mixing_ratio(bert, texts, mask_tokens=0.12, seed=1)
    assert np.allclose(first.by_layer, again.by_layer) and not np.allclose(first.by_layer, other.by_layer)
    assert "[MASK]" in first.types and first.frequency == {} and np.isnan(first.to_dataframe()["frequency"]).all()


def test_masking_needs_a_mask_token_and_a_share(gpt2, bert, texts):
    with pytest.raises(studies.StudyInputError, match="no mask token"):
        studies.mixing_ratio(gpt2, texts, mask_tokens=0.12)
    with pytest.raises(studies.StudyInputError, match="share between 0 and 1"):
        studies.mixing_ratio(bert, texts, mask_tokens=12)


@pytest.fixture
def poisoned(bert):
    """The model with NaN in the embedding of w40."""
    weight = next(p for name, p in bert.named_parameters() if "word_embeddings" in name or name.endswith("W_E"))
    kept = weight[40].clone()
    with torch.no_grad():
        weight[40] = float("nan")
    yield bert
    with torch.no_grad():
        weight[40] = kept


@pytest.mark.parametrize("chunk", [1, 128])
def test_a_text_with_nan_is_named_excluded_and_counted(poisoned, texts, chunk):
    bad = [*texts[:2], "w7 w40 w8", *texts[2:5], "w40", *texts[5:]]
    with pytest.warns(studies.ExcludedTextWarning, match="2 of 9 texts .* text 2 .*NaN"):
        found = studies.mixing_ratio(poisoned, bad, chunk=chunk)
    assert [text.index for text in found.corpus.excluded] == [2, 6] and found.corpus.n_texts == 7
    assert np.allclose(found.by_layer, ratios(poisoned, texts)) and found.by_layer.size


def test_nan_in_one_window_excludes_the_whole_text(poisoned, texts):
    long = " ".join(["w7 w8 w9 w10 w11 w12"] * 2 + ["w40"])
    with pytest.warns(studies.ExcludedTextWarning):
        found = studies.mixing_ratio(poisoned, [long, *texts], max_length=16, stride=6)
    assert found.corpus.n_windows == len(texts) and found.corpus.n_texts == len(texts)
    assert np.allclose(found.mean["Attn-N"], studies.mixing_ratio(poisoned, texts).mean["Attn-N"])


def test_a_limit_ends_a_generator_without_end(bert, texts):
    def endless():
        while True:
            yield from texts

    found = studies.mixing_ratio(bert, endless(), limit=len(texts), chunk=3)
    assert np.allclose(found.by_layer, ratios(bert, texts)) and found.corpus.n_texts == len(texts)
    with pytest.raises(studies.StudyInputError, match="limit is 0"):
        studies.mixing_ratio(bert, texts, limit=0)


def test_a_model_without_tokenizer_takes_token_ids_only(bert, texts):
    kept, bert.tokenizer = bert.tokenizer, None
    try:
        found = studies.value_norm_dispersion(bert, [[7, 8, 9]])
        assert found.corpus.n_tokens == 3
        with pytest.raises(studies.StudyInputError, match="no tokenizer"):
            studies.value_norm_dispersion(bert, texts)
    finally:
        bert.tokenizer = kept


def test_chunks_know_their_texts(bert, texts):
    items = tuple(Corpus([*texts, ""]))
    first, second = items[:4], items[4:]
    study = MixingStudy(None, token_types, 1000, True)
    parts = [measure_chunk(bert, study, items, Reading()) for items in (first, second)]
    assert [part.texts.spans for part in parts] == [((0, 4),), ((4, 8),)]
    assert parts[1].excluded[0].index == 7 and parts[0].counts[0] == 4 and parts[1].counts[0] == 3
    assert parts[0].merge(parts[1]).digest == measure_chunk(bert, study, items, Reading()).digest
    assert len({item.digest for item in Corpus([texts[0], texts[0], texts[1]])}) == 3  # what, and where


def test_texts_are_not_given_to_an_encoder_decoder():
    """BART and Marian would make a target of the source by themselves, and be measured on it."""
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    folder = Path(__file__).parents[2] / "tutorials" / "alignment_model"
    translator = bridge.TransformerBridge.boot_transformers(str(folder))
    with pytest.raises(studies.StudyInputError, match="MarianMTModel is an encoder-decoder.*studies.alignment"):
        studies.mixing_ratio(translator, ["da mi no ."], progress=False)
