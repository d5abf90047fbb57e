"""ALTI-Logit: what each layer's heads put into a target, followed down to input positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..blocks.activations import check_cache
from ..errors import UnknownOptionError
from ..names import attention_block
from ..plan import chain_of, reader_of
from ..targets import Target
from .rollouts import alti


@torch.no_grad()
def alti_logit(
    cache, target: Target, *, mask: Tensor | None = None, source_mask: Tensor | None = None
) -> Float[Tensor, "layer *batch key"]:
    """ALTI-Logit (Ferrando et al. 2023): direct logits of heads by source, followed down by ALTI.

        found[l] = Δ^l C^{l-1} ... C^0,   Δ^l[j] = Σ_h a^h_ij <G, f^h(x_j)>

    G is the target's direction u at the last norm, at the target's position i: centre(u * gain) / s_i. C is `alti` of
    the attention block before any norm after its residual connection. The embedding, the feed-forwards and biases are
    left out, so the sum over layers and keys is not the target's value. In post-LN models only the last layer writes
    directly: the others are zero.

    Args:
        cache: an ActivationCache of a whole run
        target: one target at the last stream, for instance `logit(" are") - logit(" is")`
        mask, source_mask: as for `attribute`

    Returns:
        [layer *batch key], signed, in the units of the target; sum over the first axis for one number per position.

    Raises:
        UnknownOptionError: target is not one Target.
        As `direct_attribution` and `alti`.

    Example:
        >>> tl_norms.methods.alti_logit(cache, tl_norms.logit(" are")).sum(0)   # doctest: +SKIP
    """
    from ..attribution import direct_attribution

    check_cache(cache)
    if not isinstance(target, Target):
        raise UnknownOptionError(f"target is a {type(target).__name__}; expected one Target, such as logit(' are').")
    direct = direct_attribution(cache, target, mask=mask, source_mask=source_mask).heads.sum(-2)
    reader = reader_of(cache.model)
    scope = attention_block(chain_of(reader), normed=False)
    below = alti(cache, scope, mask=mask)
    found = []
    for layer, written in enumerate(direct.double()):
        earlier = [row for row, number in enumerate(below.layers) if number < layer]
        product = below.rollout[earlier[-1]].double() if earlier else None
        found.append(written if product is None else torch.einsum("...k,...kj->...j", written, product.to(written)))
    return torch.stack(found).to(direct)
