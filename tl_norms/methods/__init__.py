"""Published methods by name: what each author computes from maps of all layers, on every architecture that is read.

| function | map of a layer | composed by | adds up |
|---|---|---|---|
| `attention_rollout` | (A + I) / 2, A the pattern's mean over heads | product | rows to 1 by themselves; to nothing |
| `attention_flow` | the same as capacities | maximum flow | rows brought to 1 |
| `norm_rollout` | lengths of source vectors, rows to 1 | product | no |
| `globenc` | lengths at the end of the block, feed-forward skipped | plain product | no |
| `alti` | how much nearer a vector brings its total, rows to 1 | product | no |
| `value_zeroing` | 1 - cos of the block's output without a source's values | product | no |
| `information_flow` | how much nearer each head's part brings each sum, parts to 1 | product; graph of edges | no |
| `decompx` | lengths of vectors, feed-forward included | vectors through all layers | vectors, and scores of a target |
| `alti_logit` | ALTI, below the direct logits of heads | product, signed | no |

Products of lengths are pictures. For what decided an output, use signed contributions to a contrast.
"""

from .decompx import DecompX, decompx
from .logits import alti_logit
from .results import ComposedMaps
from .rollouts import alti, attention_flow, attention_rollout, globenc, norm_rollout
from .routes import FlowEdge, InformationFlow, information_flow
from .zeroing import value_zeroing

__all__ = [
    "ComposedMaps",
    "DecompX",
    "FlowEdge",
    "InformationFlow",
    "alti",
    "alti_logit",
    "attention_flow",
    "attention_rollout",
    "decompx",
    "globenc",
    "information_flow",
    "norm_rollout",
    "value_zeroing",
]
