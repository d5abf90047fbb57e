"""Teacher forcing and extraction on a tiny Marian, against loops over the Hugging Face model's own activations."""

import pytest
import tiny
import torch
import translation_models as models

from tl_norms import alignment
from tl_norms.alignment import AlignmentInputError, EncodedPair, SentencePair

pytest.importorskip("transformer_lens.model_bridge", reason="this TransformerLens has no bridges")
HEADS = (None, 0, 1, 2, 3)


@pytest.fixture(scope="module")
def marian():
    return models.marian()


@pytest.fixture(scope="module")
def found(marian):
    return alignment.align(marian, models.PAIRS)


def reference(separate: bool, pair: tuple[str, str]) -> dict:
    """(setting, method, layer, head) -> links: cross-attention of the wrapped model, one pair, one word at a time."""
    model, tokenizer = models.hugging_face_marian(separate), models.marian_tokenizer(separate)
    inputs = tokenizer(pair[0], text_target=pair[1], return_tensors="pt")
    labels = inputs.pop("labels")
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        out = model(**inputs, decoder_input_ids=shifted, output_attentions=True)
    source, target = pair[0].split(), pair[1].split()
    pieces = [tokenizer.spm_source.encode(word, out_type=str) for word in source]
    source_words = [n for n, word in enumerate(pieces) for _ in word]
    target_words = [n for n, word in enumerate(target) for _ in tokenizer.spm_target.encode(word, out_type=str)]
    assert labels.shape[1] == len(target_words) + 1 and inputs["input_ids"].shape[1] == len(source_words) + 1
    links = {}
    for layer, weights in enumerate(out.cross_attentions):
        attention = model.model.decoder.layers[layer].encoder_attn
        values = attention.v_proj(out.encoder_last_hidden_state)[0].detach()
        moved = []  # alpha f(x), [head query key d_model]
        for head in range(4):
            at = slice(8 * head, 8 * head + 8)
            moved.append(weights[0, head][..., None] * (values[:, at] @ attention.out_proj.weight[:, at].T.detach()))
        for head in HEADS:
            weight = weights[0].mean(0) if head is None else weights[0, head]
            norm = (sum(moved) if head is None else moved[head]).norm(dim=-1)
            for method, map in (("weight", weight), ("norm", norm)):
                for setting, first in (("AWO", 0), ("AWI", 1)):
                    rows = map[first : first + len(target_words)]
                    links[setting, method, layer, head] = _links(rows, source_words, target_words)
    return links


def _links(rows, source_words, target_words) -> set:
    links = set()
    for t in range(max(target_words) + 1):
        own = [i for i, word in enumerate(target_words) if word == t]
        scores = [
            sum(rows[i, j].item() for i in own for j, word in enumerate(source_words) if word == s) / len(own)
            for s in range(max(source_words) + 1)
        ]
        end = sum(rows[i, len(source_words)].item() for i in own) / len(own)
        if max(scores) >= end:
            links.add((scores.index(max(scores)), t))
    return links


@pytest.mark.parametrize("separate", [False, True])
def test_every_layer_head_method_and_setting(found, separate):
    found = alignment.align(models.marian(True), models.PAIRS) if separate else found
    seen = set()
    for number, pair in enumerate(models.PAIRS):
        for (setting, method, layer, head), wanted in reference(separate, pair).items():
            assert found.links(setting, method, layer, head)[number] == wanted, (number, setting, method, layer, head)
            seen.add(frozenset(wanted))
    assert len(seen) > 20, "the links hardly differ: they test nothing"


def test_batches_and_order_change_nothing(marian, found):
    for options in ({"batch_tokens": 1}, {"batch_tokens": 60}, {"layers": [1, 0]}):
        other = alignment.align(marian, models.PAIRS[::-1], **options)
        for setting in ("AWO", "AWI"):
            for layer in (0, 1):
                for head in HEADS:
                    wanted = found.links(setting, "norm", layer, head)
                    assert other.links(setting, "norm", layer, head) == wanted[::-1]


def test_options(marian, found):
    last = alignment.align(marian, models.PAIRS, layers=-1, settings="AWI")
    assert last.layers == (1,) and last.settings == ("AWI",)
    assert last.links("AWI", "norm", 1) == found.links("AWI", "norm", 1)
    words = alignment.align(marian, models.PAIRS, end_of_sentence=False)
    for (_, target), links in zip(models.PAIRS, words.links("AWO", "weight", 0, 2), strict=True):
        assert {t for _, t in links} == set(range(len(target.split())))
    prefixed = alignment.align(marian, models.PAIRS, source_prefix="wald")
    assert any(prefixed.links("AWI", "norm", 0, head) != found.links("AWI", "norm", 0, head) for head in HEADS), (
        "a prefix is read"
    )
    split = [(source.split(), target.split()) for source, target in models.PAIRS]
    again = alignment.align(marian, split, tokenizer=models.marian_tokenizer())
    assert again.links("AWO", "norm", 0) == found.links("AWO", "norm", 0)


def test_ids_in_place_of_sentences(marian, found):
    pairs = [
        alignment.encode_pair(marian.tokenizer, SentencePair(*map(tuple, map(str.split, p)))) for p in models.PAIRS
    ]
    other = alignment.align(marian, pairs)
    assert other.links("AWI", "norm", 0, 1) == found.links("AWI", "norm", 0, 1)
    bare = [  # without the end of sentence, which is neither read nor asked for
        EncodedPair(pair.source, pair.target[:-1], pair.source_words, pair.target_words[:-1]) for pair in pairs
    ]
    assert alignment.align(marian, bare).links("AWI", "norm", 0, 1) == found.links("AWI", "norm", 0, 1)


def test_what_the_decoder_reads(marian):
    pair = EncodedPair((5, 6, 0), (7, 8, 0), (0, 1, None), (0, 1, None))
    long = EncodedPair((5, 6, 4, 3, 0), (7, 8), (0, 1, 2, 3, None), (0, 1), start=42)
    source, target, options = alignment.teacher_forced(marian, [pair, long])
    assert source.tolist() == [[5, 6, 0, 0, 0], [5, 6, 4, 3, 0]]
    assert target.tolist() == [[99, 7, 8], [42, 7, 8]]
    assert options["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_bad_input(marian):
    def raises(said, *arguments, **options):
        with pytest.raises(AlignmentInputError, match=said):
            alignment.align(*arguments, **options)

    raises("no sentence pairs", marian, [])
    raises("pair 1 is str; expected .source, target.", marian, [("a", "b"), "a ||| b"])
    raises("a sentence of pair 0 is neither", marian, [(1, "b")])
    raises("pair 0 has the word 'a b'", marian, [(["a b"], "b")])
    raises("pair 1: the source has no words", marian, [("wald", "river"), (" ", "river")])
    raises("pair 0 has 67 tokens, more than the 64", marian, [("wald", " ".join(["."] * 33))])
    raises("pair 0 holds token id 100, outside the vocabulary of 100", marian, [EncodedPair((1,), (100,), (0,), (0,))])
    raises("pair 0 holds token id -1", marian, [EncodedPair((-1, 5), (1,), (0, 0), (0,))])
    raises("expected 'AWO'", marian, models.PAIRS, settings="both")
    tokenizer, marian.tokenizer = marian.tokenizer, None
    try:
        raises("no tokenizer: pass tokenizer=", marian, models.PAIRS)
    finally:
        marian.tokenizer = tokenizer


def test_a_model_that_does_not_translate():
    family = tiny.FAMILIES["gpt2"]
    with pytest.raises(AlignmentInputError, match="GPT2LMHeadModel is no encoder-decoder"):
        alignment.align(tiny.boot(tiny.hugging_face(family), family.hf_class), models.PAIRS)
