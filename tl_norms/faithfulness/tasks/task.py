"""A task: examples with a good and a bad continuation, and what decides between them."""

from dataclasses import dataclass, field, replace

from ..targets import Probe, Target


@dataclass(frozen=True)
class Excluded:
    """A row or candidate that is not in a task.

    Attributes:
        name: "row 17", or the text
        reason: why
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Example:
    """One input and the contrast to explain.

    Attributes:
        text: what the tokens spell
        tokens: token ids, special ones included
        good, bad: the right and the wrong continuation as token ids (classes, with a probe); bad is None for the good
            one alone
        evidence: positions of the tokens that decide; () if nobody has said
        counterfactual: token ids of the same length for which `bad` is right, or None
    """

    text: str
    tokens: tuple[int, ...]
    good: int
    bad: int | None = None
    evidence: tuple[int, ...] = ()
    counterfactual: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Task:
    """Examples of one kind.

    Attributes:
        name: what tables call it
        examples: in a fixed order
        excluded: what could not be used, and why
        dropped: words of the templates that are not single tokens in this tokenizer
        probe: the linear classifier that good and bad are classes of; None for the model's own logits
    """

    name: str
    examples: tuple[Example, ...]
    excluded: tuple[Excluded, ...] = ()
    dropped: tuple[str, ...] = ()
    probe: Probe | None = field(default=None)

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        parts = [f"{len(self.examples)} examples"]
        parts += [f"{len(self.excluded)} excluded"] if self.excluded else []
        parts += [f"{len(self.dropped)} words dropped"] if self.dropped else []
        return f"Task({self.name!r}, {', '.join(parts)})"

    def target(self, example: Example) -> Target:
        """The number that methods explain: logit of good less logit of bad."""
        return Target(example.good, example.bad, probe=self.probe)

    def first(self, n: int | None) -> "Task":
        """The same with at most n examples."""
        return self if n is None else replace(self, examples=self.examples[:n])
