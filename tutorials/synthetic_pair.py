"""A made-up language pair whose word alignment is known by construction.

    source, verb in the middle:     the old dog did see Mary in cities .
    target, verb at the end:        dog old TOPIC city PLURAL in Mary OBJECT see-PAST .

Every sentence is built on both sides at once, and each target word remembers the source words it stands for, so that
links are read off and never guessed. What has to be reordered, split and joined:

    order       verb to the end of its clause; adjectives behind their noun, the last one first; prepositions become
                postpositions, their phrase goes in front of the object; adverbs to the front; a subordinate clause in
                front of the verb that it depends on
    1 to 2      some nouns are two words; a plural ending is a word of its own; "not" is put around the verb
    2 to 1      auxiliary and verb become one inflected verb; so do a verb and its particle, which stand apart
    possible    an article has no counterpart: it may be linked to the noun. So may the target's object marker.
    no link     the target's topic marker, the source's filler word

Words are one to three syllables, and syllables are the pieces of the tokenizer. A sentence has one translation, so that
a model can be right about every word.
"""

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LEXICON_SEED = 2020

SOURCE_SYLLABLES = tuple(c + v for c in "bdgklmnrst" for v in "aeiou")
TARGET_SYLLABLES = tuple(
    c + v + "lnrsm"[(7 * i + 3 * j) % 5] for i, c in enumerate("fhjpvwyz") for j, v in enumerate("aeiou")
)

# Words and endings of the grammar: no other word has these syllables alone, and no stem contains an ending.
DEFINITE, INDEFINITE, AND, THAT, PAST, NOT, WHETHER, FILLER = "da", "ne", "ko", "se", "bi", "mu", "do", "ra"
PLURAL_ENDING, SEPARATE = "ni", ("tu", "go")  # SEPARATE: particles of verbs
_MEANINGS = ("and", "that", "not", "not2", "whether", "plural", "object", "topic", "past")
_T = dict(zip(_MEANINGS, TARGET_SYLLABLES[::4], strict=False))
STOPS = (".", "?")


@dataclass(frozen=True)
class SentencePair:
    """A sentence in both languages, as words, with the gold links (source word, target word) from 0.

    Attributes:
        sure: links of words that stand for each other
        possible: links that may be there besides; those in `sure` are not repeated
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    sure: frozenset[tuple[int, int]]
    possible: frozenset[tuple[int, int]]

    @property
    def pharaoh(self) -> str:
        """Gold links as a line in Pharaoh format, `0-0 1p2`."""
        marked = [(link, "-") for link in self.sure] + [(link, "p") for link in self.possible]
        return " ".join(f"{source}{mark}{target}" for (source, target), mark in sorted(marked))


@dataclass(frozen=True)
class Lexicon:
    """Source word -> target words. `separable` has (verb, particle) -> target word."""

    nouns: dict[str, tuple[str, ...]]
    names: dict[str, tuple[str, ...]]
    adjectives: dict[str, tuple[str, ...]]
    verbs: dict[str, tuple[str, ...]]
    saying: dict[str, tuple[str, ...]]
    adverbs: dict[str, tuple[str, ...]]
    prepositions: dict[str, tuple[str, ...]]
    separable: dict[tuple[str, str], str]


class _Coiner:
    """Makes words that are not there yet."""

    def __init__(self, rng: random.Random, syllables: Sequence[str], taken: Sequence[str], endings: Sequence[str]):
        self.rng, self.taken = rng, set(taken)
        self.syllables = [s for s in syllables if s not in endings]

    def word(self, longest: int) -> str:
        while True:
            n = self.rng.choices((1, 2, 3)[:longest], (2, 5, 3)[:longest])[0]
            word = "".join(self.rng.choice(self.syllables) for _ in range(n))
            if word not in self.taken:
                self.taken.add(word)
                return word


def _lexicon(seed: int) -> Lexicon:
    rng = random.Random(seed)
    grammar = (DEFINITE, INDEFINITE, AND, THAT, PAST, NOT, WHETHER, FILLER, *SEPARATE)
    source = _Coiner(rng, SOURCE_SYLLABLES, grammar, (PLURAL_ENDING,))
    target = _Coiner(rng, TARGET_SYLLABLES, tuple(_T.values()), (_T["past"],))

    def entries(n: int, longest: int, n_double: int = 0) -> dict[str, tuple[str, ...]]:
        doubles = set(rng.sample(range(n), n_double))
        return {
            source.word(longest): tuple(target.word(longest) for _ in range(2 if number in doubles else 1))
            for number in range(n)
        }

    prepositions = entries(8, 1)
    nouns, verbs = entries(90, 2, n_double=15), entries(50, 2)  # two syllables leave room for an ending
    names, adjectives, saying, adverbs = entries(20, 3), entries(40, 3), entries(10, 2), entries(20, 3)
    separable = {(verb, rng.choice(SEPARATE)): target.word(2) for verb in rng.sample(sorted(verbs), 15)}
    return Lexicon(nouns, names, adjectives, verbs, saying, adverbs, prepositions, separable)


LEXICON = _lexicon(LEXICON_SEED)
TARGET_WORDS = dict(_T)
"""The words of the target's grammar by what they mean; "past" is an ending."""


@dataclass(eq=False)
class _Source:
    """One word of a sentence; two occurrences of a word are two of these."""

    text: str


@dataclass(eq=False)
class _Target:
    """One word of the translation, and the source words that it stands for."""

    text: str
    sure: list[_Source] = field(default_factory=list)
    possible: list[_Source] = field(default_factory=list)


@functools.cache
def _weighted(words: tuple[str, ...]) -> tuple[tuple[str, ...], list[float]]:
    """Words, and the sums of the chances up to each."""
    return words, list(itertools.accumulate(1 / (rank + 10) ** 0.7 for rank in range(len(words))))


class Grammar:
    """Draws sentences; the same seed gives the same ones."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def sentences(self, n: int) -> Iterator[SentencePair]:
        """n sentence pairs, all different and none too long (40 words) to be read by a small model."""
        seen: set[tuple[str, ...]] = set()
        while len(seen) < n:
            pair = self.sentence()
            if pair.source not in seen and max(len(pair.source), len(pair.target)) <= 40:
                seen.add(pair.source)
                yield pair

    def sentence(self) -> SentencePair:
        kind = self.rng.random()
        if kind < 0.12:
            source, target = self._clause()
            more_source, more_target = self._clause()
            link = _Source(AND)
            source, target = [*source, link, *more_source], [*target, _Target(_T["and"], [link]), *more_target]
        elif kind < 0.32:
            source, target = self._saying()
        else:
            source, target = self._clause()
        stop = "."
        if self._chance(0.15):
            whether, stop = _Source(WHETHER), "?"
            source, target = [whether, *source], [*target, _Target(_T["whether"], [whether])]
        if self._chance(0.1):
            source = [_Source(FILLER), *source]
        end = _Source(stop)
        return _pair([*source, end], [*target, _Target(stop, [end])])

    def _clause(self) -> tuple[list[_Source], list[_Target]]:
        """subject verb object (preposition noun) (adverb) -> (adverb) subject topic (noun postposition) object verb."""
        subject, subject_target, _ = self._noun_phrase()
        verb, verb_target, particle = self._verb(LEXICON.verbs)
        source = [*subject, *verb]
        middle: list[_Target] = []
        if particle or self._chance(0.75):
            thing, thing_target, head = self._noun_phrase()
            source += [*thing, *particle]
            middle = [*thing_target, _Target(_T["object"], possible=[head])]
        if self._chance(0.25):
            place, place_target, _ = self._noun_phrase()
            word, translation = self._draw(LEXICON.prepositions)
            preposition = _Source(word)
            source += [preposition, *place]
            middle = [*place_target, _Target(translation[0], [preposition]), *middle]
        target = [*subject_target, _Target(_T["topic"]), *middle, *verb_target]
        if self._chance(0.25):
            word, translation = self._draw(LEXICON.adverbs)
            adverb = _Source(word)
            source, target = [*source, adverb], [_Target(translation[0], [adverb]), *target]
        return source, target

    def _saying(self) -> tuple[list[_Source], list[_Target]]:
        """subject verb that clause -> subject topic clause that verb."""
        subject, subject_target, _ = self._noun_phrase()
        verb, verb_target, _ = self._verb(LEXICON.saying)
        clause, clause_target = self._clause()
        that = _Source(THAT)
        target = [*subject_target, _Target(_T["topic"]), *clause_target, _Target(_T["that"], [that]), *verb_target]
        return [*subject, *verb, that, *clause], target

    def _noun_phrase(self) -> tuple[list[_Source], list[_Target], _Source]:
        """(article) adjectives noun -> noun (noun) (plural) adjectives, the last one first; and the source noun."""
        if self._chance(0.2):
            word, translation = self._draw(LEXICON.names)
            name = _Source(word)
            return [name], [_Target(translation[0], [name])], name
        word, translation = self._draw(LEXICON.nouns)
        plural = self._chance(0.3)
        noun = _Source(word + PLURAL_ENDING if plural else word)
        target = [_Target(text, [noun]) for text in translation]
        source: list[_Source] = []
        article = self.rng.choices((DEFINITE, INDEFINITE, None), (5, 0 if plural else 3, 2))[0]
        if article:
            source.append(_Source(article))
            for part in target:
                part.possible.append(source[0])
        if plural:
            target.append(_Target(_T["plural"], [noun]))
        drawn: dict[str, tuple[str, ...]] = {}
        for _ in range(self.rng.choices((0, 1, 2), (6, 3, 1))[0]):
            drawn.update([self._draw(LEXICON.adjectives)])  # twice the same: once
        adjectives = []
        for text, translation in drawn.items():
            source.append(_Source(text))
            adjectives.append(_Target(translation[0], [source[-1]]))
        return [*source, noun], [*target, *reversed(adjectives)], noun

    def _verb(self, words: dict[str, tuple[str, ...]]) -> tuple[list[_Source], list[_Target], list[_Source]]:
        """(auxiliary) (not) verb ... (particle) -> (not) verb-ending (not); and the particle for later."""
        source: list[_Source] = []
        if self._chance(0.35):
            source.append(_Source(PAST))
        auxiliary = list(source)
        negation = [_Source(NOT)] if self._chance(0.2) else []
        word, (text, *_) = self._draw(words)
        particle = []
        pairs = [pair for pair in LEXICON.separable if pair[0] == word and words is LEXICON.verbs]
        if pairs and self._chance(0.5):
            text = LEXICON.separable[pairs[0]]
            particle = [_Source(pairs[0][1])]
        verb = _Source(word)
        inflected = _Target(text + _T["past"] if auxiliary else text, [*auxiliary, verb, *particle])
        before = [_Target(_T["not"], negation)] if negation else []
        after = [_Target(_T["not2"], negation)] if negation else []
        return [*auxiliary, *negation, verb], [*before, inflected, *after], particle

    def _draw(self, words: dict[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
        """A word and its translation; the first ones of a list are more frequent (a mild Zipf's law)."""
        known, weights = _weighted(tuple(words))
        word = self.rng.choices(known, cum_weights=weights)[0]
        return word, words[word]

    def _chance(self, p: float) -> bool:
        return self.rng.random() < p


def _pair(source: list[_Source], target: list[_Target]) -> SentencePair:
    """Words to numbers: a link is between two occurrences, so that a word that is there twice cannot be mixed up."""
    at = {id(word): number for number, word in enumerate(source)}
    sure = {(at[id(word)], number) for number, there in enumerate(target) for word in there.sure}
    possible = {(at[id(word)], number) for number, there in enumerate(target) for word in there.possible}
    return SentencePair(
        tuple(word.text for word in source), tuple(word.text for word in target), frozenset(sure), frozenset(possible)
    )


def pieces() -> list[str]:
    """All pieces of both languages, those that begin a word marked with SentencePiece's ▁."""
    syllables = (*SOURCE_SYLLABLES, *TARGET_SYLLABLES)
    return [*(f"▁{stop}" for stop in STOPS), *(f"▁{s}" for s in syllables), *syllables]
