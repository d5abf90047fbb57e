"""Text classification by a linear probe that is trained on the spot: for models without a head, offline."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TaskError
from ..running import last_states_hook, output
from ..targets import Pool, Probe
from .task import Example, Task
from .wording import Wording

_WORDS = {
    "food": "bread cheese soup rice cake fish meat apple butter salad pasta sugar",
    "music": "song piano guitar violin drum choir opera concert melody jazz album band",
    "sport": "football tennis goal coach match team race player stadium league golf hockey",
    "travel": "train hotel airport ticket flight tourist beach journey station ship map hostel",
}
SUBJECTS = {name: tuple(given.split()) for name, given in _WORDS.items()}
_FRAMES = (
    "Yesterday we talked about the {0} and the {1} for a long time.",
    "My friend said that the {0} was much better than the {1}.",
    "She wrote a short letter about the {0}, not about the {1}.",
    "Nobody in this town has ever seen a {0} like that, or a {1}.",
    "They paid a lot of money for the {0} and nothing for the {1}.",
    "I still remember the {0} and the {1} of that summer.",
)


def subjects(model: Any, n: int = 200, *, seed: int = 0, pool: Pool = "mean", train: int = 240) -> Task:
    """What a sentence is about: food, music, sport or travel, told by a probe on the model's last hidden states.

    Sentences are templates with two words of one subject; those words are the evidence. The probe is a multinomial
    logistic regression, trained on sentences whose words and frames come in other combinations than in the examples;
    the target is the logit of the right class less that of the strongest other one.

    Args:
        model: any; MiniLM, which has no head of its own, is what this task is for
        n: examples
        seed: of sentences
        pool: which state is classified: the "mean", the "first" ([CLS]) or the "last"
        train: sentences to train on

    Returns:
        A Task with `probe`, whose `accuracy` on the examples is kept; examples that it gets wrong are judged apart.

    Raises:
        TaskError: too few words are single tokens, or n is more than the templates give.
    """
    wording = Wording(model)
    by_class, dropped = {}, []
    for name, candidates in SUBJECTS.items():
        by_class[name] = [word for word in candidates if wording.single(word)]
        dropped += [word for word in candidates if word not in by_class[name]]
        if len(by_class[name]) < 4:
            raise TaskError(f"the task 'subjects' needs four words on {name} as single tokens; {dropped} are not.")
    made = _sentences(by_class, n + train, random.Random(f"subjects {seed}"))
    states = torch.cat([_state(model, wording.tokens(text), pool) for text, _, _ in made])
    labels = torch.tensor([label for _, label, _ in made])
    probe = _trained(states[:train], labels[:train], pool, tuple(SUBJECTS))
    logits = states[train:].float() @ probe.weight.T + probe.bias
    accuracy = float((logits.argmax(1) == labels[train:]).float().mean())
    probe = Probe(probe.weight, probe.bias, pool, tuple(SUBJECTS), accuracy)
    found = []
    for (text, label, chosen), row in zip(made[train:], logits, strict=True):
        row = row.clone()
        row[label] = float("-inf")
        evidence = {place for word in chosen for place in wording.find(text, word)}
        found.append(Example(text, wording.tokens(text), label, int(row.argmax()), tuple(sorted(evidence))))
    return Task("subjects", tuple(found), dropped=tuple(dropped), probe=probe)


def _sentences(by_class: dict[str, list[str]], n: int, rng: random.Random) -> list[tuple[str, int, tuple[str, str]]]:
    """(text, class, its two words), each text once."""
    found: dict[str, tuple[str, int, tuple[str, str]]] = {}
    for _ in range(60 * n):
        label = len(found) % len(by_class)
        first, second = rng.sample(list(by_class.values())[label], 2)
        text = rng.choice(_FRAMES).format(first, second)
        found.setdefault(text, (text, label, (first, second)))
        if len(found) == n:
            return list(found.values())
    raise TaskError(f"the templates of 'subjects' give {len(found)} sentences, and {n} are needed: take fewer.")


@torch.no_grad()
def _state(model: nn.Module, tokens: tuple[int, ...], pool: Pool) -> Tensor:
    states = output(model, torch.tensor([tokens]), at=last_states_hook(model))
    return Probe(torch.zeros(1, states.shape[-1]), torch.zeros(1), pool).pooled(states).float().cpu()


def _trained(states: Tensor, labels: Tensor, pool: Pool, names: tuple[str, ...]) -> Probe:
    """Multinomial logistic regression with a small weight penalty, to convergence."""
    weight = torch.zeros(len(names), states.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    scale = states.norm(dim=1).mean()  # so that the penalty means the same for long and short states
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = nn.functional.cross_entropy(states / scale @ weight.T + bias, labels) + 1e-3 * weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimiser.step(loss)
    return Probe((weight / scale).detach(), bias.detach(), pool, names)
