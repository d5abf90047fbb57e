"""Maps of all layers composed into one: products and maximum flows, of any maps [layer *batch query key]."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import MapError, MissingExtraError, NonFiniteError

_CAPACITY = 10_000_000  # of the widest row: capacities are whole numbers, and a flow must fit 32 bits


def rollout(
    maps: Float[Tensor, "layer *batch query key"], *, add_identity: bool = False, normalize: bool = False
) -> Float[Tensor, "layer *batch query key"]:
    """What each input position contributes through the layers, if maps compose as matrices do.

        rollout[l] = M^l M^{l-1} ... M^0,   M = map, plus the identity and with rows brought to sum 1 if asked for

    Attention rollout (Abnar & Zuidema 2020) of patterns averaged over heads is `add_identity=True,
    normalize=True`, which is (A + I) / 2. Maps in which the skip connection is inside (`attn_res` and later scopes)
    need no identity. A product of lengths is a picture, not a decomposition: nothing adds up.

    Args:
        maps: [layer *batch query key], layer 0 first, as many queries as keys
        add_identity: add 1 to the diagonal, before rows are normalised
        normalize: divide every row by its sum

    Returns:
        [layer *batch query key] in the dtype of `maps`: composed up to and including each layer. Computed in float64.

    Raises:
        MapError: the maps are not square; a row of zeros, such as padding, cannot be normalised; a product is too large
            or too small for the dtype (without `normalize`, lengths grow by powers of ten each layer).
        NonFiniteError: a map holds nan or infinity.

    Example:
        >>> patterns = cache.stack_activation("pattern").mean(-3)               # doctest: +SKIP
        >>> tl_norms.rollout(patterns, add_identity=True, normalize=True)[-1]   # doctest: +SKIP
    """
    steps = _checked(maps)
    if add_identity:
        steps = steps + torch.eye(steps.shape[-1], dtype=steps.dtype, device=steps.device)
    if normalize:
        steps = normalized(steps)
    products = steps.clone()
    for layer in range(1, len(products)):
        products[layer] = steps[layer] @ products[layer - 1]
    return _representable(products, maps.dtype)


def attention_flow(
    maps: Float[Tensor, "layer *batch query key"], *, last_only: bool = False, queries: Sequence[int] | None = None
) -> Float[Tensor, "layer *batch from key"]:
    """Maximum flow from every output position down to every input position (Abnar & Zuidema 2020).

    The graph has an edge from position i above layer l to position j below it with capacity maps[l, i, j]; for the
    paper's numbers pass (A + I) / 2. Rows are divided by their sum. Flows are unique, the paths that they take are not.
    One maximum flow per layer and pair: minutes for tens of positions and layers.

    Args:
        maps: [layer *batch query key] >= 0, layer 0 first, as many queries as keys
        last_only: flows from above the last layer only; the layer axis of the result has length 1
        queries: flows from these positions only, in this order (negative ones from the end); None for all

    Returns:
        [layer *batch query key], or `queries` in place of query, in the dtype of `maps`, from above each layer to the
        input; rows sum to 1. Capacities are rounded to 1e-7 of the largest sum of a row.

    Raises:
        MapError: the maps are not square or hold a negative number, nothing flows from a position (padding), or there
            is no such position.
        NonFiniteError: a map holds nan or infinity.
        MissingExtraError: scipy is not installed.

    Example:
        >>> patterns = cache.stack_activation("pattern").mean(-3)               # doctest: +SKIP
        >>> identity = torch.eye(patterns.shape[-1])                            # doctest: +SKIP
        >>> tl_norms.attention_flow((patterns + identity) / 2, last_only=True)  # doctest: +SKIP
    """
    maximum_flow, csr_matrix = _scipy()
    steps = _checked(maps).cpu()
    if bool((steps < 0).any()):
        raise MapError(
            f"a capacity is at least 0, but the smallest number of these maps is {float(steps.min()):.3g}. "
            f"Pass maps of lengths, or maps.clamp(min=0)."
        )
    n_layers, n = len(steps), steps.shape[-1]
    tops = [n_layers - 1] if last_only else list(range(n_layers))
    starts = list(range(n)) if queries is None else [_position(query, n) for query in queries]
    batch = steps.reshape(n_layers, -1, n, n)
    flows = batch.new_zeros(len(tops), batch.shape[1], len(starts), n)
    for b in range(batch.shape[1]):
        widest = float(batch[:, b].sum(-1).max()) or 1.0
        capacities = (batch[:, b] * (_CAPACITY / widest)).round().int()
        for row, top in enumerate(tops):
            if top == 0:
                flows[row, b] = capacities[0, starts]
                continue
            nodes = n * (top + 2)  # position j below layer l is node l n + j
            layer, query, key = capacities[: top + 1].nonzero(as_tuple=True)
            edges = (
                capacities[layer, query, key].numpy(),
                ((layer * n + n + query).numpy(), (layer * n + key).numpy()),
            )
            graph = csr_matrix(edges, shape=(nodes, nodes))
            for place, query in enumerate(starts):
                for key in range(n):
                    flows[row, b, place, key] = maximum_flow(graph, nodes - n + query, key).flow_value
    return normalized(flows).reshape(len(tops), *steps.shape[1:-2], len(starts), n).to(maps)


def _position(query: int, n: int) -> int:
    if isinstance(query, bool) or not isinstance(query, int) or not -n <= query < n:
        raise MapError(f"there is no position {query!r} to flow from: these maps have positions 0 to {n - 1}.")
    return query % n


def normalized(maps: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query key"]:
    """Every row divided by its sum.

    Raises:
        MapError: a row sums to zero.
    """
    sums = maps.sum(-1, keepdim=True)
    empty = (sums == 0).nonzero()
    if len(empty):
        raise MapError(
            f"{len(empty)} rows of these maps sum to zero, the first at index {empty[0, :-1].tolist()}, so they cannot "
            f"be brought to sum 1. If they are padding, cut it off: maps[..., :n, :n]. With ALTI it is a position that "
            f"no source brings nearer to its vector: normalize=False leaves such rows at zero."
        )
    return maps / sums


def _checked(maps: Tensor) -> Tensor:
    """The maps in float64."""
    if not isinstance(maps, Tensor):
        raise MapError(f"the maps are a {type(maps).__name__}; expected a tensor [layer *batch query key].")
    if maps.ndim < 3 or maps.shape[-1] != maps.shape[-2] or not len(maps):
        raise MapError(
            f"expected maps of shape [layer *batch query key] with as many queries as keys, found {list(maps.shape)}. "
            f"Pass all layers of one stack, such as norms['attn_res']; maps over another sequence do not compose."
        )
    if not bool(maps.isfinite().all()):
        layer = int((~maps.isfinite()).flatten(1).any(1).nonzero()[0, 0])
        raise NonFiniteError(f"the map of layer {layer} holds nan or infinity. Look at maps[{layer}].")
    return maps.double()


def _representable(products: Tensor, dtype: torch.dtype) -> Tensor:
    """The products in the dtype asked for, if that loses no row."""
    found = products.to(dtype if dtype.is_floating_point else torch.float64)
    lost = ~found.isfinite().all(-1) | ((found == 0).all(-1) & (products != 0).any(-1))
    if bool(lost.any()):
        layer = int(lost.flatten(1).any(1).nonzero()[0, 0])
        size = float(products[layer].abs().max())
        raise MapError(
            f"the product up to layer {layer} is of the order of {size:.0e}, which {found.dtype} cannot hold. "
            f"Pass maps.double(), or normalize=True."
        )
    return found


def _scipy():
    try:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import maximum_flow
    except ImportError as error:
        raise MissingExtraError("maximum flows need scipy: pip install 'tl_norms[metrics]'") from error
    return maximum_flow, csr_matrix
