"""Tasks from seeded templates, of words that are single tokens in the tokenizer at hand.

Every example has its evidence, and a counterfactual of the same length for which the other continuation is right.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TaskError
from . import words
from .task import Example, Task
from .wording import Wording

_TRIES = 60  # candidates drawn per example wanted; templates run dry where few words are single tokens


@dataclass
class _Pool:
    """Words of the templates, as far as this tokenizer has them as single tokens."""

    task: str
    wording: Wording
    dropped: list[str] = field(default_factory=list)

    def of(self, given: Sequence[str], least: int = 2) -> tuple[str, ...]:
        """Those that are single tokens."""
        kept = [word for word in given if self.wording.single(word)]
        return tuple(self._checked(kept, given, least))

    def pairs(self, given: dict[str, str], least: int = 1) -> tuple[tuple[str, str], ...]:
        """Those of which both are."""
        kept = [pair for pair in given.items() if all(map(self.wording.single, pair))]
        gone = [word for pair in given.items() if pair not in kept for word in pair if not self.wording.single(word)]
        return tuple(self._checked(kept, [*gone, *(() if gone else given)], least, gone))

    def _checked(self, kept: list, given: Sequence[str], least: int, gone: list[str] | None = None) -> list:
        gone = [word for word in given if word not in kept] if gone is None else gone
        self.dropped += gone
        if len(kept) < least:
            raise TaskError(
                f"the task {self.task!r} needs {least} of these words as single tokens of the tokenizer and has "
                f"{len(kept)}: {', '.join(map(repr, gone))} are not. Use a task of your own: tasks.from_rows(...)."
            )
        return kept


@dataclass(frozen=True)
class _Made:
    """A candidate: texts, continuations, and the word that decides with the number of its occurrence's start."""

    text: str
    good: str
    bad: str
    evidence: tuple[int, int]  # characters of `text`
    other: str  # the counterfactual


Maker = Callable[[_Pool, random.Random], Iterator[_Made]]


def agreement(model: Any, n: int = 200, *, seed: int = 0, attractors: Sequence[int] = (0, 1, 2, 3, 4)) -> Task:
    """Subject and verb: "The keys near the cabinet" -> are / is, with 0 to 4 attractors of the other number.

    Without an attractor an adverb stands between: "The keys really".

    Args:
        model: its tokenizer decides which words can be used
        n: examples, fewer if the templates have no more
        seed: of the choice of words
        attractors: how many nouns of the other number stand between; cycled through

    Returns:
        A Task; evidence is the subject, the counterfactual has it in the other number.

    Raises:
        TaskError: too few words are single tokens; they are named.
    """

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        nouns, verbs = pool.pairs({**words.PLURALS, **words.PEOPLE}, 6), pool.pairs(words.VERBS)
        relations, adverbs = pool.of(words.RELATIONS, 1), pool.of(words.ADVERBS, 1)
        number = 0
        while True:
            chosen, verb, plural = rng.sample(nouns, 1 + max(attractors)), rng.choice(verbs), rng.random() < 0.5
            between = "".join(
                f" {rng.choice(relations)} the {noun[not plural]}"
                for noun in chosen[1 : 1 + attractors[number % len(attractors)]]
            )
            number += 1
            between = between or f" {rng.choice(adverbs)}"  # the last position predicts and cannot be removed
            subject, other = chosen[0][plural], chosen[0][not plural]
            yield _Made(f"The {subject}{between}", verb[plural], verb[not plural], (4, 4 + len(subject)),
                        f"The {other}{between}")  # fmt: skip

    return _filled("agreement", model, make, n, seed)


def anaphor_gender(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "The queen praised" -> herself / himself. Arguments as `agreement`; evidence is the noun."""

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        pool.of(("himself", "herself"))
        nouns = pool.of(tuple(words.GENDERED), 2)
        men, women = ([noun for noun in nouns if words.GENDERED[noun] == own] for own in ("himself", "herself"))
        if not men or not women:
            raise TaskError(f"the task 'anaphor-gender' needs nouns of both genders as single tokens, has {nouns}.")
        past = pool.of(words.PAST, 1)
        names = pool.of(words.MALE + words.FEMALE, 1)
        while True:
            own, other = (men, women) if rng.random() < 0.5 else (women, men)
            noun, verb = rng.choice(own), rng.choice(past)
            before = f"{rng.choice(names)} said that the" if rng.random() < 0.5 else "The"
            start = len(before) + 1
            good, bad = words.GENDERED[noun], words.GENDERED[other[0]]
            yield _Made(f"{before} {noun} {verb}", good, bad, (start, start + len(noun)),
                        f"{before} {rng.choice(other)} {verb}")  # fmt: skip

    return _filled("anaphor-gender", model, make, n, seed)


def anaphor_number(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "The women praised" -> themselves / herself. Arguments as `agreement`; evidence is the noun."""

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        pool.of(("himself", "herself", "themselves"), 3)
        nouns = pool.pairs({one: many for one, many in words.PEOPLE.items() if one in words.GENDERED})
        past, names = pool.of(words.PAST, 1), pool.of(words.MALE + words.FEMALE, 1)
        while True:
            noun, verb, plural = rng.choice(nouns), rng.choice(past), rng.random() < 0.5
            before = f"{rng.choice(names)} said that the" if rng.random() < 0.5 else "The"
            start, forms = len(before) + 1, (words.GENDERED[noun[0]], "themselves")
            yield _Made(f"{before} {noun[plural]} {verb}", forms[plural], forms[not plural],
                        (start, start + len(noun[plural])), f"{before} {noun[not plural]} {verb}")  # fmt: skip

    return _filled("anaphor-number", model, make, n, seed)


def determiner_noun(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "Mary saw these old" -> books / book. Arguments as `agreement`; evidence is the determiner."""

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        nouns, determiners = pool.pairs(words.PLURALS), pool.pairs(words.DETERMINERS)
        names, past = pool.of(words.MALE + words.FEMALE, 1), pool.of(("saw", "liked", "bought", "found", "took"), 1)
        adjectives = pool.of(words.ADJECTIVES, 1)
        while True:
            noun, determiner, plural = rng.choice(nouns), rng.choice(determiners), rng.random() < 0.5
            before, behind = f"{rng.choice(names)} {rng.choice(past)}", rng.choice(adjectives)
            start = len(before) + 1
            own, other = determiner[plural], determiner[not plural]
            yield _Made(f"{before} {own} {behind}", noun[plural], noun[not plural], (start, start + len(own)),
                        f"{before} {other} {behind}")  # fmt: skip

    return _filled("determiner-noun", model, make, n, seed)


def indirect_object(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "When Mary and John went to the store, John gave a drink to" -> Mary / John, half ABBA and half BABA.

    Arguments as `agreement`. Evidence is the first mention of the indirect object; the counterfactual has the other
    name give.
    """

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        names = pool.of(words.MALE + words.FEMALE, 2)
        places, things = pool.of(words.PLACES, 1), pool.of(words.THINGS, 1)
        while True:
            object_, subject = rng.sample(names, 2)
            first, second = (object_, subject) if rng.random() < 0.5 else (subject, object_)
            head = f"When {first} and {second} went to the {rng.choice(places)},"
            tail = f"gave a {rng.choice(things)} to"
            start = head.index(object_)
            yield _Made(f"{head} {subject} {tail}", object_, subject, (start, start + len(object_)),
                        f"{head} {object_} {tail}")  # fmt: skip

    return _filled("ioi", model, make, n, seed)


def copying(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "tree car house boat tree car house" -> boat / a word not seen. Arguments as `agreement`.

    Evidence is the word to copy; in the counterfactual the other word stands there.
    """

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        nouns = pool.of(tuple(dict.fromkeys((*words.PLURALS, *words.THINGS, *words.PEOPLE))), 8)
        while True:
            length = rng.randint(3, 6)
            *shown, other = rng.sample(nouns, length + 1)
            once = " ".join(shown[:-1])
            start = len("The list:") + 1 + len(once) + 1
            yield _Made(f"The list: {once} {shown[-1]}, {once}", shown[-1], other, (start, start + len(shown[-1])),
                        f"The list: {once} {other}, {once}")  # fmt: skip

    return _filled("copying", model, make, n, seed)


def colours(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "The car is red. The cup is blue. The color of the car is" -> red / blue. Arguments as `agreement`.

    Evidence is the colour of the thing asked for; the counterfactual asks for the other thing.
    """

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        nouns, named = pool.of(tuple(words.PLURALS), 2), pool.of(words.COLOURS, 2)
        while True:
            things, shades = rng.sample(nouns, 2), rng.sample(named, 2)
            asked = rng.randrange(2)
            told = " ".join(f"The {thing} is {shade}." for thing, shade in zip(things, shades, strict=True))
            start = told.index(f"The {things[asked]} is ") + len(f"The {things[asked]} is ")
            question = f"{told} The color of the"
            yield _Made(f"{question} {things[asked]} is", shades[asked], shades[1 - asked],
                        (start, start + len(shades[asked])), f"{question} {things[1 - asked]} is")  # fmt: skip

    return _filled("colours", model, make, n, seed)


def polarity(model: Any, n: int = 200, *, seed: int = 0) -> Task:
    """ "No students have" -> ever / also, "The students have" -> also / ever. Arguments as `agreement`.

    Evidence is the first word, which licenses "ever" or does not.
    """

    def make(pool: _Pool, rng: random.Random) -> Iterator[_Made]:
        pool.of(words.LICENSED, 1)
        nouns, others = pool.pairs({**words.PEOPLE, **words.PLURALS}), pool.of(words.UNLICENSED, 1)
        relations = pool.of(words.RELATIONS, 1)
        while True:
            noun, other = rng.choice(nouns)[1], rng.choice(others)
            tail = (
                f"{noun} {rng.choice(relations)} the {rng.choice(nouns)[0]} have"
                if rng.random() < 0.5
                else f"{noun} have"
            )  # noqa: E501
            no = rng.random() < 0.5
            first, second = ("No", "The") if no else ("The", "No")
            good, bad = ("ever", other) if no else (other, "ever")
            yield _Made(f"{first} {tail}", good, bad, (0, len(first)), f"{second} {tail}")

    return _filled("polarity", model, make, n, seed)


def _filled(name: str, model: Any, make: Maker, n: int, seed: int) -> Task:
    """Candidates that this tokenizer reads as the template means them, each once."""
    if n < 1:
        raise TaskError(f"n is {n}; expected at least one example.")
    wording = Wording(model)
    pool = _Pool(name, wording)
    found: dict[str, Example] = {}
    candidates = make(pool, random.Random(f"{name} {seed}"))
    for _ in range(_TRIES * n):
        made = next(candidates)
        if made.text not in found and (example := _read(wording, made)) is not None:
            found[made.text] = example
        if len(found) == n:
            break
    if not found:
        raise TaskError(f"no example of {name!r} reads as meant with this tokenizer. Use tasks.from_rows(...).")
    return Task(name, tuple(found.values()), dropped=tuple(dict.fromkeys(pool.dropped)))


def _read(wording: Wording, made: _Made) -> Example | None:
    """The example in tokens; None if words merge, split, decide at the very end, or the counterfactual is longer."""
    tokens, other = wording.tokens(made.text), wording.tokens(made.other)
    good, bad = wording.continuation(made.text, made.good), wording.continuation(made.text, made.bad)
    evidence = wording.positions(made.text, *made.evidence)
    if good is None or bad is None or good == bad or len(evidence) != 1 or len(tokens) != len(other):
        return None
    if evidence[0] == len(tokens) - 1:
        return None
    if sum(a != b for a, b in zip(tokens, other, strict=True)) != 1:
        return None
    return Example(made.text, tokens, good, bad, evidence, other)
