"""From pieces to words, by each kind of tokenizer."""

import pytest
import torch
import translation_models as models

from tl_norms import alignment
from tl_norms.alignment import AlignmentInputError, EncodedPair, SentencePair, TokenizerSchemeError

SENTENCE = tuple("das kleine haus , dort unaufhörlich .".split())


@pytest.mark.parametrize(
    ("scheme", "pieces", "wanted"),
    [
        ("▁", "▁re order ing ▁helps ▁ . </s>", (0, 0, 0, 1, 2, 2, None)),
        ("▁", "re order ▁helps </s>", (0, 0, 1, None)),  # without a mark in front, as with add_dummy_prefix=0
        ("Ġ", "re order Ġhelps </s>", (0, 0, 1, None)),
        ("##", "<s> re ##order helps # . </s>", (None, 0, 0, 1, 2, 3, None)),
        ("@@", "re@@ order@@ ing helps </s>", (0, 0, 0, 1, None)),
        ("</w>", "re order</w> helps</w> </s>", (0, 0, 1, None)),
        ("word", "reordering helps </s>", (0, 1, None)),
        ("▁", "▁re </s> order", (0, None, 1)),  # a special token ends a word
    ],
)
def test_marks(scheme, pieces, wanted):
    pieces = pieces.split()
    special = [piece in ("<s>", "</s>") for piece in pieces]
    assert alignment.word_groups(pieces, scheme, special) == wanted


@pytest.mark.parametrize(
    ("kind", "scheme"), [("wordpiece", "##"), ("bytes", "Ġ"), ("metaspace", "▁"), ("words", "word")]
)
def test_fast_tokenizers(kind, scheme):
    tokenizer = models.fast_tokenizer(kind)
    assert alignment.subword_scheme(tokenizer) == scheme
    pair = alignment.encode_pair(tokenizer, SentencePair(SENTENCE, SENTENCE[::-1]), source_prefix="der wald")
    assert pair.target == tuple(tokenizer(" ".join(SENTENCE[::-1]))["input_ids"])
    assert pair.source == tuple(tokenizer("der wald " + " ".join(SENTENCE))["input_ids"])
    assert pair.source_words[-1] is None and pair.target_words[-1] is None
    n_prefix = len(tokenizer("der wald")["input_ids"]) - 1
    assert pair.source_words[:n_prefix] == (None,) * n_prefix
    pieces = tokenizer.convert_ids_to_tokens(pair.target)
    marked = alignment.word_groups(pieces, scheme, [piece == "</s>" for piece in pieces])
    assert pair.target_words == marked, "characters and marks tell the same"
    assert {word for word in pair.source_words if word is not None} == set(range(len(SENTENCE)))
    if kind != "words":
        assert max(pair.source_words.count(word) for word in range(len(SENTENCE))) > 1, "no word of several pieces"


def test_words_are_those_given_not_the_tokenizers():
    """WordPiece takes punctuation for words: here it belongs to the word it was given with."""
    tokenizer = models.fast_tokenizer("wordpiece")
    pair = alignment.encode_pair(tokenizer, SentencePair(("das", "haus,", "dort."), ("the",)))
    pieces = tokenizer.convert_ids_to_tokens(pair.source)
    assert [word for piece, word in zip(pieces, pair.source_words, strict=True) if piece in ",."] == [1, 2]


@pytest.mark.parametrize("separate", [False, True])
def test_marian(separate):
    """Slow, with pieces of its own for each side; `separate`: with numbers of their own too."""
    tokenizer = models.marian_tokenizer(separate)
    source, target = SENTENCE, tuple("the little house murmuring .".split())
    pair = alignment.encode_pair(tokenizer, SentencePair(source, target))
    for side, words, spm, table in (
        ("source", source, tokenizer.spm_source, tokenizer.encoder),
        ("target", target, tokenizer.spm_target, tokenizer.target_encoder if separate else tokenizer.encoder),
    ):
        pieces = spm.encode(" ".join(words), out_type=str)
        assert getattr(pair, side) == (*[table.get(piece, table["<unk>"]) for piece in pieces], table["</s>"])
        marked = alignment.word_groups([*pieces, "</s>"], "▁", [*[False] * len(pieces), True])
        assert getattr(pair, f"{side}_words") == marked and max(map(marked.count, range(len(words)))) > 1
    assert tokenizer.current_spm is tokenizer.spm_source, "left in the mode that it was in"


def test_a_language_code_belongs_to_no_word():
    tokenizer = models.marian_tokenizer()
    plain = alignment.encode_pair(tokenizer, SentencePair(("haus",), ("house",)))
    coded = alignment.encode_pair(tokenizer, SentencePair(("haus",), ("house",)), source_prefix=">>eng<<")
    assert coded.source_words == (None, *plain.source_words) and coded.source[1:] == plain.source
    assert coded.target_words == plain.target_words


class Characters:
    """A slow tokenizer of characters, blanks among them, without any mark."""

    def get_vocab(self):
        return {chr(number): number for number in range(32, 127)}

    def __call__(self, text=None, text_target=None):
        return {"input_ids": [ord(one) for one in text or text_target]}

    def tokenize(self, text):
        return list(text)

    def convert_tokens_to_ids(self, pieces):
        return [ord(piece) for piece in pieces]


class Runs(Characters):
    """One with marks, that takes a hyphen for a boundary, so that its words are not those given."""

    def get_vocab(self):
        return {"▁a": 0}

    def tokenize(self, text):
        return ["▁a"] * (len(text.replace("-", " ").split()) + (" " in text))

    def convert_tokens_to_ids(self, pieces):
        return [0] * len(pieces)

    def __call__(self, text=None, text_target=None):
        return {"input_ids": [0] * len(self.tokenize(text or text_target))}


def test_unknown_schemes():
    with pytest.raises(
        TokenizerSchemeError, match="vocabulary of Characters shows no word boundaries.*'~'.*EncodedPair"
    ):
        alignment.encode_pair(Characters(), SentencePair(("ab", "c"), ("d",)))
    with pytest.raises(TokenizerSchemeError, match="scheme '_'"):
        alignment.word_groups(["a_", "b"], "_")
    with pytest.raises(AlignmentInputError, match="Runs makes other words of 'a-b c' than those given"):
        alignment.encode_pair(Runs(), SentencePair(("a-b", "c"), ("d",)))


def test_merging_sums_over_source_and_means_over_target():
    # rows: target pieces of words 0 0 1 and an end of sentence; columns: source pieces of words 0 0 1 and the end
    map = torch.tensor(
        [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.5, 0.0], [0.6, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
    )
    found = alignment.merge_words(map, (0, 0, 1, None), (0, 0, 1, None))
    # first row: mean of 0.1+0.2 and 0.3+0.2; of 0.3 and 0.5; of 0.4 and 0
    wanted = torch.tensor([[0.4, 0.4, 0.2], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, wanted)
    both = torch.stack([map, 2 * map]).half()
    halves = alignment.merge_words(both, (0, 0, 1, None), (0, 0, 1, None))
    torch.testing.assert_close(halves, torch.stack([wanted, 2 * wanted]).float(), atol=1e-3, rtol=0)


def test_words_come_first_and_special_tokens_behind_each_by_itself():
    found = alignment.merge_words(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (None, 1, 0, None), (0,), n_source=3)
    assert found.tolist() == [[3.0, 2.0, 0.0, 1.0, 4.0]]  # words 0, 1, 2 (no piece), then the specials in order


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: alignment.merge_words(torch.zeros(2, 3), (0, 1), (0, 1, 2)), r"the map is \[2, 3\], but there are 3"),
        (lambda: alignment.merge_words(torch.zeros(2), (0, 1), (0,)), "expected"),
        (lambda: alignment.merge_words(torch.zeros(1, 1), (1,), (0,), n_source=1), "belongs to word 1"),
        (lambda: EncodedPair((1, 2), (3,), (0,), (0,)), "the source has 2 tokens and 1 word numbers"),
        (lambda: EncodedPair((1,), (), (0,), ()), "at least one token"),
        (lambda: EncodedPair((1,), (1,), (0,), (-1,)), "belongs to word -1"),
        (lambda: alignment.encode_pair(None, SentencePair((), ("a",))), "the source has no words"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(AlignmentInputError, match=said):
        call()
