"""Removing positions from an input: what the target is when only some of them are there.

    cut      nobody else attends to the position; length and positions of the others stay
    replace  its embedding by that of a token, by the mean embedding, or by zero
    swap     its token by that of a minimal counterfactual of the same length

Hooks live for one run, and the first use on a model proves the removal: what is removed must not reach the output.
"""

import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .errors import FaithfulnessInputError, RemovalError
from .running import Edit, device_of, edited, embedding_hook, embeddings, is_causal, output
from .targets import Target

_IN_FRONT_OF_HEADS = ("unembed.hook_in", "ln_final.hook_normalized")  # bridge, HookedTransformer
REMOVALS = ("cut", "replace", "swap")
Replacement = str | int
"""A token id, "mean" (of all embeddings) or "zero"."""

_proved: "weakref.WeakKeyDictionary[nn.Module, dict[tuple, str]]" = weakref.WeakKeyDictionary()
_means: "weakref.WeakKeyDictionary[nn.Module, Tensor]" = weakref.WeakKeyDictionary()


def check_removals(removals: tuple[str, ...], replacement: Replacement) -> None:
    """Raise FaithfulnessInputError for names that mean nothing."""
    for name in removals:
        if name not in REMOVALS:
            raise FaithfulnessInputError(f"there is no removal {name!r}; expected {', '.join(REMOVALS)}.")
    if isinstance(replacement, str) and replacement not in ("mean", "zero"):
        raise FaithfulnessInputError(f"replacement is {replacement!r}; expected 'mean', 'zero' or a token id.")


def removed(
    model: nn.Module,
    tokens: Int[Tensor, "batch pos"],
    kept: Bool[Tensor, "batch pos"],
    removal: str,
    replacement: Replacement = "mean",
    counterfactual: Int[Tensor, "*batch pos"] | None = None,
    at: str | None = None,
) -> Float[Tensor, "batch pos d_out"]:
    """What the model returns, or has at a hook point, with the positions that are not kept removed."""
    if removal == "swap":
        if counterfactual is None:
            raise FaithfulnessInputError("swap needs a counterfactual of the same number of tokens.")
        return output(model, torch.where(kept, tokens, counterfactual.to(tokens)), at=at)
    if removal == "replace" and isinstance(replacement, int):
        return output(model, tokens.masked_fill(~kept, replacement), at=at)
    if removal == "replace":
        return output(model, tokens, {embedding_hook(model): embedding_filled(model, kept, replacement)}, at=at)
    way = _way_of_cutting(model)
    return output(model, tokens, *_cut(model, kept, way), at=at)


def head_input(model: nn.Module) -> str | None:
    """Where positions can be left out in front of the head, which is the largest matrix of a small model."""
    points: Any = model.hook_dict
    return next((name for name in _IN_FRONT_OF_HEADS if name in points), None)


def narrowed(model: nn.Module, at: int) -> dict[str, Edit]:
    """Only the position that predicts goes on to the head."""
    hook = head_input(model)
    return {} if hook is None else {hook: lambda x: x[:, [at]]}


def predicted(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, edits: Mapping[str, Edit]
) -> Float[Tensor, " batch"]:
    """The target of a run with edits; the head makes the logits of one position only."""
    at = target.hook(model)
    with edited(model, {} if at or not by_position(model) else narrowed(model, target.at)):
        found = output(model, tokens, edits, at=at)
    return (replace(target, at=0) if found.shape[1] == 1 and not at else target).value(found)


def by_position(model: nn.Module) -> bool:
    """Whether what follows the last block goes position by position, as far as `narrowed` needs it: tried once."""
    known = _proved.setdefault(model, {})
    if ("narrow",) not in known:
        known[("narrow",)] = "" if _narrowing_changes(model) else "proved"
    return bool(known[("narrow",)])


def embedding_filled(model: nn.Module, kept: Bool[Tensor, "batch pos"], replacement: Replacement) -> Edit:
    """The edit of embeddings that replaces those that are not kept."""
    return _filled(kept, replacing(model, replacement))


def cutting(model: nn.Module) -> tuple[str, ...]:
    """Where attention scores can be masked in front of the softmax, a name for every layer.

    Raises:
        UnsupportedArchitectureError: this model is cut in another way, or not at all.
    """
    if _way_of_cutting(model) != "scores":
        raise UnsupportedArchitectureError(f"{type(model).__name__} has no attention scores to mask.")
    return tuple(_each_once(model, ".hook_attn_scores"))


def _each_once(model: nn.Module, ending: str) -> list[str]:
    """Hook points by their ending; a point has several names on a bridge."""
    points: Any = model.hook_dict
    found: dict[int, str] = {}
    for name, point in points.items():
        if name.endswith(ending):
            found.setdefault(id(point), name)
    return list(found.values())


def replacing(model: nn.Module, replacement: Replacement) -> Float[Tensor, " d_model"]:
    """The embedding that stands in for a removed one."""
    if isinstance(replacement, int):
        return embeddings(model, torch.tensor([[replacement]]))[0, 0]
    if model not in _means:
        _means[model] = _mean_embedding(model)
    mean = _means[model]
    return torch.zeros_like(mean) if replacement == "zero" else mean


def _mean_embedding(model: nn.Module) -> Float[Tensor, " d_model"]:
    """Over the whole vocabulary, as embeddings pass the hook."""
    weight: Any = getattr(model, "W_E", None)
    some = torch.arange(3)[None]
    passed = embeddings(model, some)[0]
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.shape[-1] == passed.shape[-1]:
        factor = (passed * weight[:3]).sum() / weight[:3].square().sum()  # some models scale what they look up
        if torch.allclose(passed, weight[:3].to(passed) * factor, rtol=1e-3, atol=1e-5):
            return weight.detach().float().mean(0).to(passed) * factor
    size, step = int(model.cfg.d_vocab), 64  # type: ignore[union-attr]
    parts = [embeddings(model, torch.arange(n, min(n + step, size))[None])[0].sum(0) for n in range(0, size, step)]
    return torch.stack(parts).sum(0) / size


def _filled(kept: Bool[Tensor, "batch pos"], filling: Tensor) -> Edit:
    return lambda x: torch.where(kept[..., None].to(x.device), x, filling.to(x))


def _cut(model: nn.Module, kept: Bool[Tensor, "batch pos"], way: str) -> tuple[dict[str, Edit], Tensor | None]:
    """Edits and mask of a run in which nobody else attends to what is not kept."""
    seen = kept[:, None, None, :] | torch.eye(kept.shape[1], dtype=torch.bool, device=kept.device)
    if way == "mask":
        if type(model).__name__ == "HookedEncoder":
            return {}, kept.long()
        # with all four axes: of a mask [batch pos] a bridge makes new position ids, and everybody moves up
        dtype = next(model.parameters()).dtype
        return {}, torch.zeros(seen.shape, dtype=dtype, device=kept.device).masked_fill(~seen, torch.finfo(dtype).min)

    def scores(x: Tensor) -> Tensor:  # behind the model's own mask and in front of the softmax, so exact
        return x.masked_fill(~seen.to(x.device), torch.finfo(x.dtype).min)

    def pattern(x: Tensor) -> Tensor:  # what a softmax over fewer scores gives; a learned sink keeps its share
        left = x.masked_fill(~seen.to(x.device), 0)
        sink = (1 - x.sum(-1, keepdim=True)).clamp(min=0)
        sink = torch.where(sink < 1e-3, 0, sink)
        return left / (left.sum(-1, keepdim=True) + sink)

    edit, ending = (scores, ".hook_attn_scores") if way == "scores" else (pattern, ".hook_pattern")
    return dict.fromkeys(_each_once(model, ending), edit), None


def _way_of_cutting(model: nn.Module) -> str:
    """How positions are hidden in this model: found by trying, once."""
    known = _proved.setdefault(model, {})
    if ("way",) in known:
        return known[("way",)]
    problems = []
    for way in ("scores", "pattern") if is_causal(model) else ("mask", "scores", "pattern"):
        try:
            run: Callable[[Tensor, Tensor], Tensor] = lambda ids, kept, way=way: output(  # noqa: E731
                model, ids, *_cut(model, kept, way)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some models announce that such an edit comes too late
                problem = _influence(model, run)
            if not problem:
                known[("way",)] = way
                return way
            problems.append(f"by {way}: {problem}")
        except UnsupportedArchitectureError:
            raise
        except Exception as error:  # a model that takes no such mask, or has no such hook
            problems.append(f"by {way}: {type(error).__name__}")
    raise UnsupportedArchitectureError(
        f"positions of {type(model).__name__} cannot be cut out of attention ({'; '.join(problems)}). Fused attention "
        f"has nothing to edit: load the model with attn_implementation='eager', or use removals=('replace',)."
    )


def prove(model: nn.Module, removal: str, replacement: Replacement) -> None:
    """Once per model: what is removed does not reach the other positions, and removing nothing changes nothing."""
    known = _proved.setdefault(model, {})
    key = (removal, replacement if removal == "replace" else "")
    if key in known or removal == "swap":
        return
    if removal == "cut":
        known[key] = _way_of_cutting(model)
        return
    problem = _influence(model, lambda ids, kept: removed(model, ids, kept, removal, replacement))
    if problem:
        raise RemovalError(
            f"{removal} by {replacement!r} does not remove a position from {type(model).__name__}: {problem}. "
            f"Replace by a token instead: replacement=<token id>."
        )
    known[key] = "proved"


@torch.no_grad()
def _influence(model: nn.Module, run: Callable[[Tensor, Tensor], Tensor]) -> str:
    """What is wrong with a removal, "" if nothing is."""
    n, d_vocab = 6, max(int(getattr(model.cfg, "d_vocab", 12) or 12), 12)
    ids = (torch.arange(n) * 7 + 5) % (d_vocab - 3) + 3
    other = ids.clone()
    other[[1, 3]] = (ids[[1, 3]] - 3 + 1) % (d_vocab - 3) + 3
    device = device_of(model)
    both = torch.stack([ids, other]).to(device)
    kept = torch.ones_like(both, dtype=torch.bool)
    plain = output(model, both).float()
    size = plain.abs().max()
    if (run(both, kept).float() - plain).abs().max() > 1e-4 * size:
        return "removing nothing changes the output"
    if not by_position(model):
        return "what follows the last block does not go position by position"
    if (plain[0, -1] - plain[1, -1]).abs().max() < 1e-4 * size:
        return "the output does not depend on the input"
    kept[:, [1, 3]] = False
    found = run(both, kept).float()[:, kept[0]]
    if not found.isfinite().all():
        return "the output is not finite"
    if (found[0] - found[1]).abs().max() > 1e-5 * size:
        return "the token of a removed position changes the output"
    return ""


@torch.no_grad()
def _narrowing_changes(model: nn.Module) -> bool:
    ids = ((torch.arange(6) * 7 + 5) % max(int(getattr(model.cfg, "d_vocab", 12) or 12) - 3, 9) + 3)[None]
    plain = output(model, ids).float()
    with edited(model, narrowed(model, 2)):
        narrow = output(model, ids).float()
    narrow = narrow[:, 2] if narrow.shape[1] == plain.shape[1] else narrow[:, 0]
    return not torch.allclose(narrow, plain[:, 2], rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
