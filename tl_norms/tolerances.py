"""How far sums may be from the model's activations: by the least exact dtype of the cache."""

import torch

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of one block."""

WHOLE_MODEL = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Through all blocks, whose roundings add up: transformers computes norms in float32 in a float64 model too."""
