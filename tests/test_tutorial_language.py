"""The tutorials' made-up language pair: its gold links, and the translation model that is shipped with them."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

from tl_norms import alignment

TUTORIALS = Path(__file__).parents[1] / "tutorials"
FOLDER = TUTORIALS / "alignment_model"


@pytest.fixture(scope="module")
def language():
    return _tutorial_module("synthetic_pair")


@pytest.fixture(scope="module")
def training():
    return _tutorial_module("alignment_model")


def _tutorial_module(name):
    """The scripts are no package: their folder is where they find each other."""
    sys.path.insert(0, str(TUTORIALS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TUTORIALS))


def _by_dictionary(language, source, target):
    """Sure and possible links of two sentences from their words alone, or None if a word is there twice.

    The generator carries links along while it builds a sentence. Here each target word is looked up in the dictionary
    turned around, and words of the grammar are placed by their neighbours.
    """
    lexicon, grammar = language.LEXICON, language.TARGET_WORDS
    of_target, nouns = {}, {*lexicon.nouns, *lexicon.names}
    for kind in ("nouns", "names", "adjectives", "verbs", "saying", "adverbs", "prepositions"):
        for word, translation in getattr(lexicon, kind).items():
            of_target |= {part: (word,) for part in translation}
    of_target |= {translation: pair for pair, translation in lexicon.separable.items()}
    once = {grammar["and"]: "ko", grammar["that"]: "se", grammar["whether"]: "do", ".": ".", "?": "?"}

    stems = [word[:-2] if word.endswith("ni") and word[:-2] in lexicon.nouns else word for word in source]
    content = [stem for stem in stems if stem not in {"da", "ne", "bi", "mu", "ra", "tu", "go"}]
    if max(Counter(content).values()) > 1:
        return None
    sure, possible = set(), set()
    for t, word in enumerate(target):
        past = word not in of_target and word.endswith(grammar["past"])
        words = of_target.get(word.removesuffix(grammar["past"]) if past else word, ())
        if word in once:
            words = (once[word],)
        if words:
            s = stems.index(words[0])
            sure.add((s, t))
            if len(words) == 2:
                sure.add((source.index(words[1], s), t))
            if past:
                sure.add((s - (2 if source[s - 1] == "mu" else 1), t))
            if words[0] in nouns:
                first = s - 1
                while first >= 0 and source[first] in lexicon.adjectives:
                    first -= 1
                if first >= 0 and source[first] in ("da", "ne"):
                    possible.add((first, t))
        elif word == grammar["plural"]:
            sure.add((stems.index(of_target[target[t - 1]][0]), t))
        elif word in (grammar["not"], grammar["not2"]):
            verb = target[t + (1 if word == grammar["not"] else -1)]
            verb = verb if verb in of_target else verb.removesuffix(grammar["past"])
            sure.add((stems.index(of_target[verb][0]) - 1, t))
        elif word == grammar["object"]:
            noun = t - 1
            while of_target.get(target[noun], ("",))[0] not in nouns:
                noun -= 1
            possible.add((stems.index(of_target[target[noun]][0]), t))
    return sure, possible


def test_gold_links_are_those_of_the_dictionary(language):
    pairs = list(language.Grammar(17).sentences(2000))
    checked = 0
    for pair in pairs:
        found = _by_dictionary(language, pair.source, pair.target)
        if found is not None:
            checked += 1
            assert found == (pair.sure, pair.possible), (pair.source, pair.target)
    assert checked > 1000
    # Every construction is there, and what has no counterpart has no link
    topic, filler = language.TARGET_WORDS["topic"], language.FILLER
    for pair in pairs:
        links = pair.sure | pair.possible
        assert not any(pair.target[t] == topic or pair.source[s] == filler for s, t in links)
        assert {s for s, _ in links} == {s for s, word in enumerate(pair.source) if word != filler}
    seen = {word for pair in pairs for word in pair.source}
    assert {"da", "ne", "ko", "se", "bi", "mu", "do", "ra", "tu", "go", ".", "?"} <= seen
    several = [Counter(s for s, _ in pair.sure) for pair in pairs], [Counter(t for _, t in pair.sure) for pair in pairs]
    assert [max(max(counts.values()) for counts in side) for side in several] == [3, 3]


def _first(language, *wanted):
    """The first sentence whose words are the ones wanted, or in the dictionaries wanted."""
    for pair in language.Grammar(5).sentences(100_000):
        if len(pair.source) == len(wanted) and all(
            word == slot if isinstance(slot, str) else word in slot
            for word, slot in zip(pair.source, wanted, strict=True)
        ):
            return pair
    raise AssertionError(f"no sentence like {wanted}")


def test_sentences_aligned_by_hand(language):
    lexicon, grammar = language.LEXICON, language.TARGET_WORDS
    topic, object_, past = (grammar[name] for name in ("topic", "object", "past"))
    single = {word: target[0] for word, target in lexicon.nouns.items() if len(target) == 1}
    double = {word: target for word, target in lexicon.nouns.items() if len(target) == 2}
    plurals = {word + "ni": target for word, target in double.items()}
    separable = {verb: particle for verb, particle in lexicon.separable}

    # "the dog did not V Name up.": a verb in three places, "not" around it, a marker and an article without counterpart
    found = _first(language, "da", single, "bi", "mu", separable, lexicon.names, ("tu", "go"), ".")
    _, noun, _, _, verb, name, particle, _ = found.source
    stem = lexicon.separable[verb, particle]
    assert found.target == (
        single[noun], topic, *lexicon.names[name], object_, grammar["not"], stem + past, grammar["not2"], "."
    )  # fmt: skip
    assert found.pharaoh == "0p0 1-0 2-5 3-4 3-6 4-5 5-2 5p3 6-5 7-7"

    # "Name sees the old handshoes.": two words and a plural for one, behind them the adjective
    found = _first(language, lexicon.names, lexicon.verbs, "da", lexicon.adjectives, plurals, ".")
    name, verb, _, adjective, nouns, _ = found.source
    assert found.target == (
        *lexicon.names[name], topic, *plurals[nouns], grammar["plural"], *lexicon.adjectives[adjective], object_,
        *lexicon.verbs[verb], ".",
    )  # fmt: skip
    assert found.pharaoh == "0-0 1-7 2p2 2p3 3-5 4-2 4-3 4-4 4p6 5-8"


def test_sentences_are_drawn_by_seed(language):
    first, again, other = (list(language.Grammar(seed).sentences(50)) for seed in (1, 1, 2))
    assert first == again and first != other
    assert len({pair.source for pair in first}) == 50
    known = {}
    for pair in language.Grammar(3).sentences(3000):  # what is translated one way is translated that way again
        assert known.setdefault(pair.source, pair.target) == pair.target
    sizes = {len(word) // 2 for words in (language.LEXICON.nouns, language.LEXICON.names) for word in words}
    assert sizes == {1, 2, 3}


def test_the_shipped_files_are_the_language(language, training):
    pairs = list(language.Grammar(training.HELD_OUT_SEED).sentences(500))
    shipped = alignment.read_pairs(FOLDER / "held_out.pairs")
    assert [(pair.source, pair.target) for pair in shipped] == [(pair.source, pair.target) for pair in pairs]
    lengths = [(len(pair.source), len(pair.target)) for pair in pairs]
    gold = alignment.read_pharaoh(FOLDER / "held_out.gold", lengths=lengths)
    assert [links.sure for links in gold] == [pair.sure for pair in pairs]
    assert [links.possible for links in gold] == [pair.sure | pair.possible for pair in pairs]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 5_000_000


def test_pieces_of_words(language, training):
    """Each word is its syllables, the first one marked; the saved tokenizer is the one that was built."""
    built, loaded = training.build_tokenizer(), transformers.AutoTokenizer.from_pretrained(FOLDER)
    for pair in list(language.Grammar(9).sentences(50)):
        for words, size in ((pair.source, 2), (pair.target, 3)):
            text, expected = " ".join(words), []
            for word in words:
                syllables = [word[n : n + size] for n in range(0, len(word), size)]
                expected += ["▁" + syllables[0], *syllables[1:]]
            ids = loaded(text)["input_ids"]
            assert loaded.convert_ids_to_tokens(ids) == [*expected, "</s>"] == built.convert_ids_to_tokens(ids)
            assert loaded.decode(ids, skip_special_tokens=True) == text


def test_the_shipped_model_translates(training, language):
    model = transformers.MarianMTModel.from_pretrained(FOLDER).eval()
    assert model.dtype == torch.float32
    pairs = list(language.Grammar(training.HELD_OUT_SEED).sentences(50))
    assert training.exact_match(model, transformers.AutoTokenizer.from_pretrained(FOLDER), pairs) >= 0.95
