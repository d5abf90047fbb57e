"""Gradients at the token embeddings: times input, their length, and integrated along the way from zero."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import MissingExtraError
from ..removals import predicted
from ..running import Edit, embedding_hook, embeddings, shared_run
from ..targets import Target, joined, separate


def input_gradient(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, edits: Mapping[str, Edit] | None = None
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]]:
    """The token embeddings, and the gradient of the target there, with edits that may change derivatives."""
    caught: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        caught.append(x.detach().clone().requires_grad_())
        return caught[-1]

    own = {**(edits or {}), embedding_hook(model): leaf}
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(predicted(model, tokens, target, own).sum(), caught[0])
    return caught[0].detach(), gradient


def plain_gradient(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos d_model"]]:
    """`input_gradient` without edits, shared by the methods that read it."""
    what = (target.good, target.bad, target.at, id(target.probe))
    key = ("gradient", id(model), *tokens.shape, *tokens.flatten().tolist(), *what)
    return shared_run(key, lambda: input_gradient(model, tokens, target), len(tokens), len(tokens))


def gradient_x_input(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """<gradient, embedding> of every token."""
    x, gradient = plain_gradient(model, tokens, target)
    return (x * gradient).sum(-1)


def gradient_norm(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """Length of the gradient at the embedding of every token: no sign."""
    return plain_gradient(model, tokens, target)[1].norm(dim=-1)


def integrated_gradients(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, steps: int = 20
) -> Float[Tensor, "batch pos"]:
    """<embedding, mean gradient at a embedding>, a = 1/steps, ..., 1: from zero embeddings (Sundararajan et al. 2017).

    Raises:
        MissingExtraError: captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise MissingExtraError("integrated gradients need captum: pip install 'tl_norms[judge]'") from error
    hook = embedding_hook(model)

    def value(x: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:  # some steps of some rows
        own = joined([each[row] for row in rows.tolist()])
        return predicted(model, tokens, own, {hook: lambda _: x})

    each, x = separate(target, len(tokens)), embeddings(model, tokens)
    with torch.enable_grad():
        found: Any = IntegratedGradients(value).attribute(
            x,
            additional_forward_args=(tokens.to(x.device), torch.arange(len(x))),
            n_steps=steps,
            method="riemann_right",
            internal_batch_size=max(len(x), 512 // tokens.shape[1]),
        )
    return found.sum(-1).detach()
