"""Pictures of results: plotly to look into, matplotlib to print.

    from tl_norms import plot
    plot.layer_maps(norms, model.to_str_tokens(text), "attn_res_ln")                          # a plotly Figure
    plot.layer_maps(norms, tokens, backend="matplotlib").savefig("maps.pdf")                  # vectors, text as text

Each function takes a result and the tokens of its text, and returns a Figure that is the caller's to restyle: nothing
is shown, written or fetched. With several texts in the result it asks for `batch=`. Needs the extra `plot`.
"""

from .alignment import alignment_maps
from .circuits import to_circuitsvis
from .curves import changes, mixing_ratios
from .errors import PlotInputError
from .feed_forward import feed_forward, top_pairs
from .maps import head_maps, layer_maps, weight_and_norm

__all__ = [
    "PlotInputError",
    "alignment_maps",
    "changes",
    "feed_forward",
    "head_maps",
    "layer_maps",
    "mixing_ratios",
    "to_circuitsvis",
    "top_pairs",
    "weight_and_norm",
]
