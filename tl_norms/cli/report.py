"""The numbers of the output as plain Python values: what `--json` prints and the tables show."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingExtraError
from ..names import resolve_scope
from ..norms import scopes
from ..results import BlockNorms
from ..tolerances import TOLERANCE

PAIRS = 10  # of the pairs that the feed-forward amplifies most, per layer


def has_ff(scope: str) -> bool:
    """Whether a scope goes through the feed-forward."""
    return "ff" in scope.split("_")


def with_predecessors(model: Any, asked: Sequence[str] | None, stack: str | None) -> list[str] | None:
    """The scopes asked for; those through the feed-forward bring the one before them, to compare with."""
    if asked is None:
        return None
    chain = scopes(model, stack=stack)
    if "all" in asked:
        return list(chain)
    chosen = []
    for name in asked:
        position = chain.index(resolve_scope(name, chain))
        chosen += chain[max(position - has_ff(chain[position]), 0) : position + 1]
    return chosen


def unique_layers(model: Any, asked: Sequence[int] | None) -> list[int] | None:
    """Layer numbers without repetition; -1 and 5 are one layer in a model of six. Unknown ones are left to fail."""
    if asked is None:
        return None
    n = int(model.cfg.n_layers)
    return list(dict.fromkeys(layer + n if -n <= layer < 0 else layer for layer in asked))


def facts(model: Any, name: str, text: str, tokens: Tensor, words: list[str], dtype: str, bias: str) -> dict[str, Any]:
    """What was run, and with which versions."""
    packages = ("tl_norms", "transformer_lens", "transformers", "torch")
    cfg = model.cfg
    return {
        "model": name,
        "architecture": getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", None),
        "class": type(model).__name__,
        "n_layers": int(cfg.n_layers),
        "dtype": dtype,
        "bias": bias,
        "versions": {package: _version(package) for package in packages} | {"python": platform.python_version()},
        "text": text,
        "tokens": words,
        "token_ids": tokens[0].tolist(),
    }


def _version(package: str) -> str:
    if package == "tl_norms":
        from .. import __version__

        return __version__
    return importlib.metadata.version(package)


def errors(norms: BlockNorms) -> dict[str, Any]:
    """Completeness, layer by layer; null where TransformerLens has no activation to compare with."""
    return {
        "scopes": list(norms.scopes),
        "chain": list(norms.chain),
        "layers": list(norms.layers),
        "layers_without_attention": list(norms.skipped),
        "causal": norms.causal,
        "processing": list(norms.processing),
        "error": {scope: norms.error[scope].tolist() for scope in norms.scopes},
    }


def numbers(norms: BlockNorms, keys: list[str]) -> dict[str, Any]:
    """Everything computed for one text: maps, ratios, strongest sources, and what the feed-forward did."""
    ratios = {scope: norms.mixing_ratio(scope)[:, 0] for scope in norms.scopes}
    found = errors(norms) | {
        "mixing_ratio": {scope: ratio.tolist() for scope, ratio in ratios.items()},
        "mean_mixing_ratio": {scope: ratio.mean(-1).tolist() for scope, ratio in ratios.items()},
        "norms": {scope: norms[scope][:, 0].tolist() for scope in norms.scopes},
        "strongest_source": {scope: norms[scope][:, 0].argmax(-1).tolist() for scope in norms.scopes},
        "strongest_other_source": {scope: strongest_others(norms, scope) for scope in norms.scopes},
    }
    changes, pairs, missing = feed_forward(norms, keys)
    found |= {"contextualization_change": changes, "amplified_pairs": pairs}
    if norms.boundary is not None:
        shares = {scope: norms.mixing_shares(scope) for scope in norms.shares}
        found["boundary"] = norms.boundary
        found["mixing_shares"] = {
            scope: {part: value[:, 0].tolist() for part, value in vars(share).items()}
            for scope, share in shares.items()
        }
    return found | ({} if missing is None else {"not_computed": missing})


def strongest_others(norms: BlockNorms, scope: str) -> list[list[int | None]]:
    """For each layer and position the source, other than itself, that put most into it; None if there is no other."""
    maps = norms[scope][:, 0]
    possible = norms.pairs(scope)[0].to(maps.device).clone().fill_diagonal_(False)
    best = maps.masked_fill(~possible, -torch.inf).argmax(-1).tolist()
    lonely = (~possible.any(-1)).tolist()
    return [[None if alone else key for key, alone in zip(row, lonely, strict=True)] for row in best]


def feed_forward(norms: BlockNorms, keys: list[str]) -> tuple[dict[str, list[float]], list[dict], str | None]:
    """Contextualization change per component and layer, most amplified pairs, and what kept them from being computed.

    The change is that of every scope whose predecessor was computed too; empty unless a scope goes through the
    feed-forward. Pairs of a position with itself are left out, as in the plots.
    """
    if not any(has_ff(scope) for scope in norms.scopes):
        return {}, [], None
    try:
        from ..metrics import component_changes, ff_amplification

        changes = {scope: change[:, 0].tolist() for scope, change in component_changes(norms).items()}
        first = next(scope for scope in norms.chain if scope.endswith("_ff"))
        if first not in norms or first.removesuffix("_ff") not in norms:
            return changes, [], None
        pairs = ff_amplification(norms).top_pairs(PAIRS, tokens=keys, diagonal=False).drop(columns="batch")
        return changes, pairs.to_dict("records"), None
    except MissingExtraError as error:
        return {}, [], " ".join(str(error).split())


def tolerance(dtype: str) -> float:
    """The largest completeness error that passes at this precision."""
    return TOLERANCE[getattr(torch, dtype)]


def is_complete(norms: BlockNorms, tolerance: float) -> bool:
    """Every scope that can be compared is within the tolerance, at every layer, and every layer has one that can.

    A nan error means "nothing to compare with" only where the ratios themselves are finite.
    """
    error = torch.stack([norms.error[scope] for scope in norms.scopes])  # [scope layer]
    sound = torch.stack([norms.mixing_ratio(scope).flatten(1).isfinite().all(-1).cpu() for scope in norms.scopes])
    passed = (error <= tolerance) | (error.isnan() & sound)
    return bool(passed.all()) and bool((~error.isnan()).any(0).all())


def as_json(value: Any) -> str:
    """Strict JSON: nan and infinity become null."""
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
