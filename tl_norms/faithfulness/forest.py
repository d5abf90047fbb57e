"""Many sets of positions of causal inputs in one run: what sets have in common up to a position is computed once.

What a causal model has at position i depends on the positions up to i only. Sets that keep the same of them share that
state, so all sets are the paths of trees: a node is a position with what is there and at every earlier one. The nodes
of many trees stand in one sequence; each attends to its own ancestors only, and has the number of its position. What is
cut out of attention is no node at all. On sentences of 15 tokens a quarter to half of the positions of whole inputs.

Used on models for which it gives the same numbers as whole inputs (`fits`): it needs position ids that the model takes
and attention scores that can be masked.
"""

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .removals import Replacement, cutting, embedding_filled, head_input, removed
from .running import Edit, device_of, embedding_hook, is_causal, output, pass_on, uncounted

_NODES = 128  # of one sequence: more share more, but attention among them grows with the square
_known: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()
"""How long sequences may be in which the model's own mask is known to hide nothing; -1 where trees do not fit."""

Step = tuple[int, int, bool]
"""A position, the token there, and whether its embedding is replaced."""


class HiddenError(Exception):
    """The model's own mask hides from a node what it has to see."""


@dataclass
class Trees:
    """Paths that share their beginnings, in one sequence.

    Attributes:
        steps: of every node
        parents: the node before it, -1 for none; always an earlier one
        ends: the last node of every path, in the order in which they were added
    """

    steps: list[Step] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    _last: tuple[Sequence[Step], list[int]] = ((), [])

    def __len__(self) -> int:
        return len(self.steps)

    def shared(self, path: Sequence[Step]) -> int:
        """How many nodes of a path are there already, if paths come in the order of `sorted`."""
        last, _ = self._last
        both = zip(path, last, strict=False)
        return next((n for n, (own, other) in enumerate(both) if own != other), min(len(path), len(last)))

    def add(self, path: Sequence[Step]) -> None:
        n = self.shared(path)
        nodes = list(self._last[1][:n])
        for step in path[n:]:
            self.parents.append(nodes[-1] if nodes else -1)
            nodes.append(len(self.steps))
            self.steps.append(step)
        self.ends.append(nodes[-1])
        self._last = path, nodes

    def ancestors(self, size: int) -> Bool[np.ndarray, "node other"]:
        """Which nodes each attends to, itself among them; filled up to `size`."""
        seen = np.eye(size, dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def planted(paths: Sequence[Sequence[Step]], nodes: int) -> list[tuple[Trees, list[int]]]:
    """Paths in sequences of at most so many nodes (a longer path has one of its own), with the numbers of the paths."""
    found: list[tuple[Trees, list[int]]] = []
    for number in sorted(range(len(paths)), key=lambda number: tuple(paths[number])):
        path = paths[number]
        if not found or len(found[-1][0]) + len(path) - found[-1][0].shared(path) > nodes:
            found.append((Trees(), []))
        found[-1][0].add(path)
        found[-1][1].append(number)
    return found


def path_of(
    tokens: Sequence[int], kept: Sequence[bool], removal: str, replacement: Replacement, other: Sequence[int] | None
) -> tuple[Step, ...]:
    """An input with some positions removed, as a path; the last position is always there."""
    last = len(tokens) - 1
    if removal == "cut":
        return tuple((at, token, False) for at, token in enumerate(tokens) if kept[at] or at == last)
    if removal == "swap" and other is not None:
        return tuple((at, token if kept[at] else other[at], False) for at, token in enumerate(tokens))
    if isinstance(replacement, int):
        return tuple((at, token if kept[at] else replacement, False) for at, token in enumerate(tokens))
    return tuple((at, token if kept[at] else 0, not kept[at]) for at, token in enumerate(tokens))


@torch.no_grad()
def run_paths(
    model: nn.Module,
    paths: Sequence[tuple[Step, ...]],
    replacement: Replacement,
    batch_tokens: int,
) -> Float[Tensor, "path d_out"]:
    """What the model returns at the end of every path, each counted as one row through the model.

    Raises:
        HiddenError: the model's own mask is in the way.
    """
    longest = int(getattr(model.cfg, "n_ctx", 0) or 0) or _NODES
    found = planted(paths, min(_NODES, longest))
    found.sort(key=lambda one: len(one[0]))
    rows: list[Tensor] = [torch.empty(0)] * len(paths)
    size, start = max(len(trees) for trees, _ in found), 0
    at_once = max(1, batch_tokens // size)
    while start < len(found):
        part = found[start : start + at_once]
        start += len(part)
        with uncounted():
            values = _run(model, [trees for trees, _ in part], replacement)
        for (_, numbers), of_piece in zip(part, values, strict=True):
            for number, value in zip(numbers, of_piece, strict=False):
                rows[number] = value
    pass_on(len(paths), 0.0)
    return torch.stack(rows)


def _run(model: nn.Module, pieces: Sequence[Trees], replacement: Replacement) -> Float[Tensor, "piece end d_out"]:
    size, device = max(map(len, pieces)), device_of(model)
    steps = np.zeros((3, len(pieces), size), np.int64)
    for number, trees in enumerate(pieces):
        steps[:, number, : len(trees)] = np.array(trees.steps).T
    places, tokens, filled = torch.from_numpy(steps).to(device)
    ends = [trees.ends for trees in pieces]
    most = max(map(len, ends))
    chosen = torch.tensor([[*own, *[0] * (most - len(own))] for own in ends], device=device)
    seen = torch.from_numpy(np.stack([trees.ancestors(size) for trees in pieces])).to(device)
    unsure = size > _known.get(model, 0)  # its mask is the same for every sequence of a length
    edits: dict[str, Edit] = dict.fromkeys(cutting(model), _attending(seen, unsure))
    if bool(filled.any()):
        edits[embedding_hook(model)] = embedding_filled(model, ~filled.bool(), replacement)
    narrow = head_input(model)
    if narrow is not None:
        edits[narrow] = lambda x: _at(x, chosen)
    found = output(model, tokens, edits, torch.ones_like(tokens), positions=places)
    _known[model] = max(size, _known.get(model, 0))
    return found if found.shape[1] == most and narrow is not None else _at(found, chosen)


def _at(x: Float[Tensor, "piece node d"], nodes: Int[Tensor, "piece end"]) -> Float[Tensor, "piece end d"]:
    return x.gather(1, nodes[..., None].expand(-1, -1, x.shape[-1]))


def _attending(seen: Bool[Tensor, "piece node other"], unsure: bool) -> Edit:
    hidden = ~seen[:, None]

    def scores(x: Tensor) -> Tensor:
        lowest = torch.finfo(x.dtype).min
        earlier = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).tril()
        if unsure and bool((x[0].masked_fill(~earlier, 0) < lowest / 2).any()):
            raise HiddenError  # a window, for instance
        return x.masked_fill(hidden, lowest)

    return scores


def fits(model: nn.Module) -> bool:
    """Whether sets that share their beginnings give what whole inputs give on this model: tried once."""
    if model not in _known and not _tried(model):
        _known[model] = -1
    return _known[model] >= 0


@torch.no_grad()
def _tried(model: nn.Module) -> bool:
    if type(model).__name__ in ("HookedTransformer", "HookedEncoder") or not is_causal(model):
        return False
    n, d_vocab = 7, max(int(getattr(model.cfg, "d_vocab", 12) or 12), 12)
    ids = (torch.arange(n) * 7 + 5) % (d_vocab - 3) + 3
    kept = torch.from_numpy(np.random.default_rng(0).random((24, n)) < 0.6)
    kept[0], kept[1:, -1] = True, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever a model says to position ids
            for removal in ("cut", "replace"):
                paths = [path_of(ids.tolist(), row, removal, "zero", None) for row in kept.tolist()]
                made = run_paths(model, paths, "zero", 64).float()
                real = removed(model, ids.expand(len(kept), -1), kept.to(device_of(model)), removal, "zero")[:, -1]
                if not float((made - real.float()).abs().max()) <= 1e-4 * float(real.float().abs().max()):
                    return False
    except UnsupportedArchitectureError:
        return False
    except Exception:  # a model that takes no position ids, or another shape of them
        return False
    return True
