"""Cross-attention by norms: what each encoder token moved into each decoder position."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks.activations import check_cache
from .complete import Completed, completed
from .errors import MissingExtraError, UnsupportedArchitectureError
from .freeze import FrozenBlock
from .labels import Tokens, checked_tokens, model_name, strings_of_both
from .layer_numbers import stacked
from .linear.carry.terms import Mixture
from .linear.measure.factors import factored, mixture_norms
from .linear.required import read
from .options import Layers
from .plan import Plan, chain_of, reader_of
from .storage.storable import Storable

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class CrossNorms(Storable):
    """Cross-attention by norms: queries are positions of the decoder, keys those of the encoder.

    Attributes:
        layers: the layer numbers along the first axis
        attention: α, the cross-attention weights per head, [layer batch head query key]
        head_norms: ‖αf(x)‖, what each head moves, [layer batch head query key]
        norms: ‖Σ_h αf(x)‖, the length of what all heads move together, [layer batch query key]
        value_norms: ‖f(x)‖, [layer batch head key]
        error: relative error of Σ_s Σ_h αf(x) + b_O against the model's activation, [layer]
        mask: True where a position of the decoder is real, [batch query], or None
        source_mask: the same for the encoder, [batch key]
        token_strings: the decoder's tokens of every text, as the tokenizer decodes them or as they were given, or None
        source_strings: the same for the encoder
        model_name: what the model was loaded by
    """

    layers: tuple[int, ...]
    attention: Float[Tensor, "layer *batch head query key"]
    norms: Float[Tensor, "layer *batch query key"]
    value_norms: Float[Tensor, "layer *batch head key"]
    error: Float[Tensor, " layer"]
    mask: Tensor | None = None
    source_mask: Tensor | None = None
    token_strings: tuple[tuple[str, ...], ...] | None = None
    source_strings: tuple[tuple[str, ...], ...] | None = None
    model_name: str = ""

    @property
    def head_norms(self) -> Float[Tensor, "layer *batch head query key"]:
        """‖αf(x)‖ = α ‖f(x)‖ per head, made when asked for."""
        return self.attention * self.value_norms[..., None, :]

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer, text, query and key: their tokens where they are known, norm, and mean weight over heads.

        Padding is left out.

        Raises:
            MissingExtraError: pandas is not installed.

        Example:
            >>> tl_norms.cross_norms(cache).to_dataframe().nlargest(5, "norm")  # doctest: +SKIP
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe needs pandas: pip install 'tl_norms[plot]'") from error
        has_batch = self.norms.ndim == 4
        norms, weights = self.norms.float().cpu(), self.attention.float().mean(-3).cpu()
        norms, weights = (norms, weights) if has_batch else (norms[:, None], weights[:, None])
        n_texts, n, n_keys = norms.shape[1:]
        real = _real(self.mask, n_texts, n)[:, :, None] & _real(self.source_mask, n_texts, n_keys)[:, None]
        layer, batch, query, key = real.expand(len(self.layers), -1, -1, -1).nonzero().T
        columns = {"layer": [self.layers[n] for n in layer.tolist()], "batch": batch.tolist()}
        for name, place, strings in (("query", query, self.token_strings), ("key", key, self.source_strings)):
            columns[name] = place.tolist()
            if strings is not None:
                pairs = zip(batch.tolist(), place.tolist(), strict=True)
                columns[f"{name}_token"] = [strings[text][at] for text, at in pairs]
        found = {"norm": norms[layer, batch, query, key].tolist(), "weight": weights[layer, batch, query, key].tolist()}
        table = pandas.DataFrame(columns | found)
        return table if has_batch else table.drop(columns="batch")

    def __repr__(self) -> str:
        axes = "layer batch query key" if self.norms.ndim == 4 else "layer query key"
        return (
            f"CrossNorms, {len(self.layers)} layers, norms {list(self.norms.shape)} [{axes}], "
            f"completeness error {float(self.error.max()):.1e}"
        )


@torch.no_grad()
def cross_norms(
    cache,
    *,
    layers: Layers = None,
    mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    check: bool = True,
    tokens: Tokens | None = None,
    source_tokens: Tokens | None = None,
) -> CrossNorms:
    """The norms of cross-attention in the decoder of an encoder-decoder, per head and over all heads.

    head_norms[i, s] = ‖α^h_is f^h(x_s)‖ and norms[i, s] = ‖Σ_h α^h_is f^h(x_s)‖, where x_s is the encoder's output at
    position s, f^h(x) = (x W_V^h + b_V^h) W_O^h, and i a position of the decoder (Kobayashi et al. 2020, §5). In every
    layer, Σ_s Σ_h α f(x) + b_O is compared with what cross-attention really wrote.

    Args:
        cache: an ActivationCache of an encoder-decoder: a TransformerBridge or a HookedEncoderDecoder
        layers: one layer of the decoder, several, or None for all
        mask: the decoder's attention mask, [batch target pos], True or 1 at real tokens
        source_mask: the encoder's, [batch source pos]; needed if the batch is padded
        check: raise if a layer does not add up; False keeps the error in the result only
        tokens: what to call the decoder's positions in tables and pictures: a list of strings, or one per text; by
            default the tokenizer's strings, where the cache holds the token ids
        source_tokens: the same for the encoder

    Returns:
        CrossNorms: `.head_norms`, `.attention` [layer batch head query key], `.norms` [layer batch query key],
        `.value_norms` [layer batch head key], in the units of the residual stream; query = decoder, key = encoder.

    Raises:
        UnsupportedArchitectureError: the model has no cross-attention (it is not an encoder-decoder), or one that is
            not understood.
        AttentionPatternError: the cache has no cross-attention patterns.
        UnknownOptionError: tokens that do not fit.
        DecompositionError, MissingActivationError, UnknownLayerError, MaskError, NonFiniteError, NotACacheError

    Example:
        >>> _, cache = model.run_with_cache(source, decoder_input=target)       # doctest: +SKIP
        >>> tl_norms.cross_norms(cache).norms[3, 0]                             # doctest: +SKIP
    """
    check_cache(cache)
    given = checked_tokens(tokens), checked_tokens(source_tokens)
    if not any(scope.endswith("_cross") for scope in chain_of(reader_of(cache.model))):
        raise UnsupportedArchitectureError(
            f"{_name(cache.model)} has no cross-attention: expected the cache of an encoder-decoder, such as Marian or "
            f"T5. For self-attention call tl_norms.block_norms(cache)."
        )
    options = {"layers": layers, "mask": mask, "source_mask": source_mask, "check": check}
    plan, activations = Plan.of_cache(cache, "cross", **options)
    attention, norms, value_norms, errors = [], [], [], []
    for block in plan.blocks:
        frozen = FrozenBlock(plan.reader, activations, block)
        (made,) = completed(frozen, plan.scopes, check)
        mixture = _mixture(made)
        lengths, (factors,) = factored(mixture, causal=False)
        attention.append(mixture.pattern)
        found, spots = mixture_norms(mixture, factors, causal=False)
        spots.compare(found, f"layer {block.layer}: the norms of pairs")
        norms.append(found)
        value_norms.append(lengths)
        errors.append(made.error)
    n_texts, n, n_keys = norms[0].shape
    masks = activations.mask, activations.source_mask
    strings, source = strings_of_both(activations.tensors, cache.model, given, masks, (n_texts, n, n_keys))
    return CrossNorms(
        layers=tuple(block.layer for block in plan.blocks),
        attention=stacked(attention, activations.has_batch),
        norms=stacked(norms, activations.has_batch),
        value_norms=stacked(value_norms, activations.has_batch),
        error=torch.tensor(read(errors)),
        mask=mask,
        source_mask=source_mask,
        token_strings=strings,
        source_strings=source,
        model_name=model_name(cache.model),
    )


def _real(mask: Tensor | None, n_texts: int, n: int) -> Tensor:
    """True at real positions, [text pos]."""
    return torch.ones(n_texts, n).bool() if mask is None else torch.as_tensor(mask).bool().cpu().reshape(n_texts, n)


def _mixture(made: Completed) -> Mixture:
    terms = made.sources.cross.terms if made.sources.cross is not None else ()
    if len(terms) == 1 and isinstance(terms[0], Mixture):
        return terms[0]
    raise UnsupportedArchitectureError(f"scope {made.scope!r} is not cross-attention alone.")


def _name(model: nn.Module) -> str:
    return type(getattr(model, "original_model", model)).__name__
