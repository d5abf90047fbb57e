"""Figures of results: interactive (plotly) or for papers (matplotlib).

    from tl_norms import plot
    plot.layer_maps(norms, model.to_str_tokens(text), "attn_res_ln")                          # a plotly Figure
    plot.layer_maps(norms, tokens, backend="matplotlib").savefig("maps.pdf")                  # vectors, text as text
    plot.position_map(tl_norms.attribute(cache, target))                                      # where the answer sits

Each function takes a result and, where the result does not keep them, the tokens of its text, and returns a Figure
that is the caller's to restyle: nothing is shown, written or fetched. With several texts in the result it asks for
`batch=`. All take `backend=`, `title=`, `cmap=` and `width=` (see `Look`). With a dark template (plotly) or style
(matplotlib) as the library's default, colours are made for it. Needs the extra `plot`.
"""

from .alignment import alignment_maps
from .attributions import head_edges, head_grid, position_map
from .circuits import to_circuitsvis
from .curves import changes, mixing_ratios
from .errors import PlotInputError
from .feed_forward import feed_forward, top_pairs
from .graph import contribution_graph
from .judging import judge_table
from .maps import head_maps, layer_maps, weight_and_norm
from .picture import Look
from .strip import token_strip

__all__ = [
    "Look",
    "PlotInputError",
    "alignment_maps",
    "changes",
    "contribution_graph",
    "feed_forward",
    "head_edges",
    "head_grid",
    "head_maps",
    "judge_table",
    "layer_maps",
    "mixing_ratios",
    "position_map",
    "to_circuitsvis",
    "token_strip",
    "top_pairs",
    "weight_and_norm",
]
