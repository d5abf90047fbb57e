"""Targets resolved in one run: values read from the model, and the covectors that a backward pass starts from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .freeze_ends import HeldHead
from .model_map import ModelMap
from .targets import Along, At, Output, Target, TargetError


@dataclass(frozen=True)
class Ending:
    """What a backward pass starts from.

    Attributes:
        value: the model's own numbers, [t b]
        covectors: by cut, of the stream there, [t b q d]
        constant: biases of the head and offsets of its steps, [t b]
        read: by layer, the values of directions read off the stream entering it: above it they are past
        names: of the targets
    """

    value: Float[Tensor, "t b"]
    covectors: Mapping[int, Float[Tensor, "t b q d"]]
    constant: Float[Tensor, "t b"]
    read: Mapping[int, Float[Tensor, "t b"]]
    names: tuple[str, ...]

    def at(self, cut: int) -> Tensor:
        """The covector that starts at a cut; zeros for none."""
        if cut in self.covectors:
            return self.covectors[cut]
        return torch.zeros_like(next(iter(self.covectors.values())))

    def read_below(self, cut: int) -> Tensor | float:
        """The values that were read off the stream below a cut."""
        return sum((value for layer, value in self.read.items() if layer < cut), 0.0)


class _Making:
    def __init__(self, model_map: ModelMap, targets: Sequence[Target]):
        self.map, self.targets = model_map, targets
        stack = model_map.stack
        self.last = stack.stream(stack.n_layers)
        n, (b, q, d) = len(targets), self.last.shape
        self.shape = n, b, q, d
        self.value, self.constant = self.last.new_zeros(n, b), self.last.new_zeros(n, b)
        self.covectors: dict[int, Tensor] = {}
        self.read: dict[int, Tensor] = {}
        self.before: Tensor | None = None  # covectors of what the unembedding reads

    def ending(self) -> Ending:
        for number, target in enumerate(self.targets):
            outputs = [(c, term) for c, term in target.terms if isinstance(term, Output)]
            if outputs:
                self._outputs(number, outputs)
            for c, term in target.terms:
                if isinstance(term, Along):
                    self._along(number, c, term)
        n_layers = self.map.stack.n_layers
        if self.before is not None and self.map.head is not None:
            self._add(n_layers, self.map.head.before.transpose(self.before))
            own = self.map.head.before.offset
            if own is not None:
                self.constant += (self.before * own).sum((-1, -2))
        if not self.covectors:
            self._add(n_layers, self.last.new_zeros(self.shape))
        return Ending(self.value, self.covectors, self.constant, self.read, tuple(t.name for t in self.targets))

    def _add(self, cut: int, g: Tensor) -> None:
        self.covectors[cut] = g if cut not in self.covectors else self.covectors[cut] + g

    def _outputs(self, number: int, terms: list[tuple[float, Output]]) -> None:
        head = _head(self.map)
        pooled = head.head.pooled
        if any(term.of_class != pooled for _, term in terms):
            raise TargetError(
                "this model is a classifier: its targets are classes, tl_norms.class_logit(1)."
                if pooled
                else "this model is no classifier; its targets are tl_norms.logit(token) and tl_norms.direction(...)."
            )
        if self.before is None:
            n, b, q, d = self.shape
            self.before = self.last.new_zeros(n, b, 1 if pooled else q, d)
        for at in dict.fromkeys(term.at for _, term in terms):
            chosen = [(c, term) for c, term in terms if term.at == at]
            ids = torch.stack([_ids(self.map, term.token, self.shape[1]) for _, term in chosen], -1)  # [b t]
            c = self.last.new_tensor([c for c, _ in chosen])
            positions = position(self.map, at)
            every, column = ids.unique(return_inverse=True)
            covectors, constants, values = head.columns(every, positions)
            rows = torch.arange(len(positions), device=positions.device)
            own = rows[:, None], column.to(rows.device)
            self.before[number, rows, positions] += torch.einsum("t,btd->bd", c, covectors[own])
            self.constant[number] += constants[own] @ c
            self.value[number] += values[own] @ c

    def _along(self, number: int, c: float, term: Along) -> None:
        stack = self.map.stack
        cut = stack.n_layers if term.layer is None else term.layer
        if not -stack.n_layers <= cut <= stack.n_layers or (cut == stack.n_layers and term.layer is not None):
            raise TargetError(
                f"there is no layer {term.layer}: this model has layers 0 to {stack.n_layers - 1}; "
                f"layer=None is what leaves the last one."
            )
        cut = cut + stack.n_layers if cut < 0 else cut
        d = self.shape[-1]
        if term.vector.shape != (d,):
            raise TargetError(f"the direction has {len(term.vector)} numbers; this model's stream has {d}.")
        vector = term.vector.to(self.last)
        weights = _weights(self.map, term.at)
        g = self.last.new_zeros(self.shape)
        g[number] = c * weights[..., None] * vector
        self._add(cut, g)
        value = c * (weights * (stack.stream(cut) @ vector)).sum(-1)
        self.value[number] += value
        if cut < stack.n_layers:
            self.read.setdefault(cut, torch.zeros_like(self.value))[number] += value


def read_targets(model_map: ModelMap, targets: Sequence[Target]) -> Ending:
    """Targets in one run.

    Raises:
        TargetError: a token, class, position, layer or width that does not exist; a model without such outputs.
    """
    for target in targets:
        if not isinstance(target, Target):
            raise TargetError(
                f"expected a target, found {type(target).__name__}. Make one with tl_norms.logit(' are') - "
                f"tl_norms.logit(' is'), tl_norms.direction(vector), or tl_norms.top_target(cache). A probability is "
                f"not affine in the activations: use a logit or a difference of logits."
            )
    if not targets:
        raise TargetError("there are no targets; expected one or several.")
    return _Making(model_map, targets).ending()


def _head(model_map: ModelMap) -> HeldHead:
    if model_map.head is None:
        raise TargetError(
            f"{type(getattr(model_map.model, 'original_model', model_map.model)).__name__} has no head, so it has no "
            f"logits. Its targets are directions: tl_norms.direction(vector, at=position or weights)."
        )
    return model_map.head


def _ids(model_map: ModelMap, token: int | str | tuple[int | str, ...], n_rows: int) -> Tensor:
    """A vocabulary id for every row, [b]."""
    device = model_map.stack.real().device
    if not isinstance(token, tuple):
        return torch.full((n_rows,), token_id(model_map, token), device=device)
    if len(token) != n_rows:
        raise TargetError(f"the target names {len(token)} tokens, one for every row; this run has {n_rows} rows.")
    return torch.tensor([token_id(model_map, one) for one in token], device=device)


def token_id(model_map: ModelMap, token: int | str) -> int:
    """A vocabulary id; of a string by the model's tokenizer.

    Raises:
        TargetError: a string of several tokens or none, no tokenizer, an id out of range.
    """
    n = _head(model_map).n_outputs
    if isinstance(token, str):
        tokenizer = getattr(model_map.model, "tokenizer", None)
        if tokenizer is None:
            raise TargetError(f"this model has no tokenizer to read {token!r} with; give the vocabulary id.")
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            parts = ", ".join(repr(tokenizer.decode([i])) for i in ids)
            raise TargetError(
                f"{token!r} is {len(ids)} tokens for this tokenizer: {parts or 'none'}. Name one token, with the space "
                f"that belongs to it, or a vocabulary id."
            )
        token = int(ids[0])
    if not 0 <= token < n:
        raise TargetError(f"there is no output {token}: this model has outputs 0 to {n - 1}.")
    return token


def position(model_map: ModelMap, at: int) -> Tensor:
    """The position in every row, [b]; negative from the last real one.

    Raises:
        TargetError: it is outside, or padding.
    """
    real = model_map.stack.real()
    n = real.shape[1]
    if not -n <= at < n:
        raise TargetError(f"there is no position {at}: this run has positions 0 to {n - 1}.")
    if at >= 0:
        found = torch.full((len(real),), at, device=real.device)
    else:
        numbers = torch.where(real, torch.arange(n, device=real.device), -1)
        ordered = numbers.sort(dim=1).values
        found = ordered[:, at]
    if bool((found < 0).any()) or not bool(real[torch.arange(len(real), device=real.device), found].all()):
        raise TargetError(f"position {at} is padding in some row of the batch; take one that all rows have.")
    return found


def _weights(model_map: ModelMap, at: At) -> Tensor:
    """Weights of the positions, [b q]."""
    real = model_map.stack.real()
    weights = model_map.stack.stream(0).new_zeros(real.shape)
    if isinstance(at, Tensor) and at.is_floating_point():
        if at.shape not in (real.shape, real.shape[1:]):
            raise TargetError(f"the weights have shape {list(at.shape)}; this run has {real.shape[1]} positions.")
        return at.to(weights).expand_as(weights)
    for one in [at] if isinstance(at, int) else list(at):
        found = position(model_map, int(one))
        weights[torch.arange(len(found), device=found.device), found] += 1
    return weights


def top_two(model_map: ModelMap, at: int = -1) -> list[tuple[int, int]]:
    """The ids of the predicted token and the runner-up, for every row."""
    best = _head(model_map).logits(position(model_map, at)).topk(2, dim=-1).indices
    return [(int(first), int(second)) for first, second in best.tolist()]
