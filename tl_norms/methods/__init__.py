"""Published methods by name: what each author computes from maps of all layers, on every architecture that is read.

| function | map of a layer | composed by | adds up |
|---|---|---|---|
| `attention_rollout` | (A + I) / 2, A the pattern's mean over heads | product | rows to 1 by themselves; to nothing |
| `attention_flow` | the same as capacities | maximum flow | rows brought to 1 |
| `norm_rollout` | lengths of source vectors, rows to 1 | product | no |
| `alti` | how much nearer a vector brings its total, rows to 1 | product | no |

Products of lengths are pictures. For what decided an output, use signed contributions to a contrast.
"""

from .results import ComposedMaps
from .rollouts import alti, attention_flow, attention_rollout, norm_rollout

__all__ = ["ComposedMaps", "alti", "attention_flow", "attention_rollout", "norm_rollout"]
