"""What is explained: a difference of two logits, of a language model or of a linear probe."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Pool = Literal["mean", "first", "last"]


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on the last hidden states: logits_c = <weight_c, pooled state> + bias_c.

    Attributes:
        weight: [class d_model]
        bias: [class]
        pool: "mean" over the positions that are there, "first" ([CLS]) or "last"
        names: of the classes
        accuracy: on held-out texts, where it was trained here; nan otherwise
    """

    weight: Float[Tensor, "class d_model"]
    bias: Float[Tensor, " class"]
    pool: Pool = "mean"
    names: tuple[str, ...] = ()
    accuracy: float = float("nan")

    def __repr__(self) -> str:  # the same in every process, and another for other weights
        digest = hashlib.blake2b(self.weight.double().cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"Probe({tuple(self.weight.shape)}, pool={self.pool!r}, weights {digest})"

    def pooled(
        self, states: Float[Tensor, "batch pos d_model"], kept: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """The state that is classified; the mean is over kept positions."""
        if self.pool != "mean":
            return states[:, 0 if self.pool == "first" else -1]
        if kept is None:
            return states.mean(1)
        weights = kept.to(states)[..., None]
        return (states * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class Target:
    """The number that is explained: logit of `good` less logit of `bad` (nothing less where `bad` is None).

    Attributes:
        good, bad: token ids, or classes of the probe; tuples of them, one per row, where several inputs are explained
            at once (`joined`)
        at: the position whose logits are taken, -1 for the last one (ignored with a probe)
        probe: a linear classifier; None for the model's own logits
    """

    good: int | tuple[int, ...]
    bad: int | tuple[int, ...] | None = None
    at: int = -1
    probe: Probe | None = field(default=None)

    def value(
        self, output: Float[Tensor, "batch pos d_out"], kept: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Of what the model returned: `target.value(model(tokens))`, without a probe.

        Args:
            output: logits, or the last hidden states where there is a probe
            kept: positions that count for a mean over positions; None for all
        """
        if self.probe is None:
            logits = output[:, self.at]
        else:
            weight, bias = self.probe.weight.to(output), self.probe.bias.to(output)
            logits = self.probe.pooled(output, kept) @ weight.T + bias
        return _columns(logits, self.good) - (0 if self.bad is None else _columns(logits, self.bad))

    def exact(self, n: int) -> Any:
        """The same for `tl_norms.attribute`, of n positions; a probe's constant is nobody's and left out.

        Rows with a probe need the same classes.
        """
        import tl_norms

        make: Any = tl_norms  # its functions are resolved when they are used
        if self.probe is not None:
            weight = self.probe.weight
            row = weight[self.good] if self.bad is None else weight[self.good] - weight[self.bad]
            at: Any = (
                row.new_full((n,), 1 / n) if self.probe.pool == "mean" else 0 if self.probe.pool == "first" else -1
            )
            return make.direction(row, at=at)
        good = make.logit(self.good, at=self.at)
        return good if self.bad is None else good - make.logit(self.bad, at=self.at)

    def hook(self, model: Any) -> str | None:
        """Where `value` reads: None for what the model returns."""
        from .running import last_states_hook

        return None if self.probe is None else last_states_hook(model)

    def of(self, model: Any, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
        """The model's own value; with gradients where they are enabled."""
        from .running import output

        return self.value(output(model, tokens, at=self.hook(model)))


def _columns(logits: Tensor, chosen: int | tuple[int, ...]) -> Tensor:
    """One column, or one for every row."""
    if isinstance(chosen, int):
        return logits[:, chosen]
    return logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]


def joined(targets: Sequence[Target]) -> Target:
    """The targets of several inputs of one length as one, whose value has a row for each."""
    first = targets[0]
    if all((one.good, one.bad) == (first.good, first.bad) for one in targets):
        return first
    good = tuple(int(one.good) for one in targets)  # type: ignore[arg-type]
    bad = None if first.bad is None else tuple(int(one.bad) for one in targets)  # type: ignore[arg-type]
    return replace(first, good=good, bad=bad)


def separate(target: Target, n: int) -> list[Target]:
    """The targets of n inputs that were `joined`."""
    rows = [{name: ids[row] for name in ("good", "bad") if isinstance(ids := getattr(target, name), tuple)}
            for row in range(n)]  # fmt: skip
    return [replace(target, **own) for own in rows]
