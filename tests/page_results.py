"""Results with numbers of our own for the tests of pages, and what a page holds, read as a browser would."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import torch

from tl_norms.results import BlockNorms, HeadNorms, RunFacts, ScopeNorms

NASTY = [
    "</script><script>alert(1)</script>",
    "</script <!--<script ",
    "&amp;{{DATA}}",
    "\"quote'",
    "line\nbreak",
    " 🎉",
    "\u2028",
    "\ud800é",
]
POST_LN = ("attn", "attn_res", "attn_res_ln", "attn_res_ln_ff")


def made_norms(
    n_layers=2, n=8, scopes=POST_LN, causal=True, n_heads=2, spread=1e3, mask=None, batch: int | None = 1, n_source=0
):
    """Lengths over three orders of magnitude, and an own vector of position 0 that drowns everything.

    The last two scopes have `n_source` keys after the own ones.
    """
    torch.manual_seed(0)
    lead = () if batch is None else (batch,)
    wide = {scope: n + (n_source if scope in scopes[-2:] else 0) for scope in scopes}
    maps = {
        scope: torch.rand(n_layers, *lead, n, m) * spread ** torch.rand(n_layers, *lead, n, m)
        for scope, m in wide.items()
    }
    patterns = torch.rand(n_layers, *lead, n_heads, n, n)
    for value in maps.values():
        value[..., 0, 0] = 30 * value.max()
        if causal:
            value[..., :n] = value[..., :n].tril()
    if causal:
        patterns = patterns.tril()
    error = torch.tensor([1e-7] * (n_layers - 1) + [float("nan")])
    return BlockNorms(
        {scope: ScopeNorms(value, torch.rand(n_layers, *lead, n), error) for scope, value in maps.items()},
        HeadNorms(torch.rand(n_layers, *lead, n_heads, n), tuple(patterns / patterns.sum(-1, keepdim=True))),
        RunFacts(
            layers=tuple(range(n_layers)), chain=scopes, causal=causal, mask=mask, boundary=n if n_source else None
        ),
    )


def made_attribution(tokens, n_layers=3, n_heads=4, causal=True, batch=None):
    """Whatever an attribution must have; every cut adds up to the value."""
    torch.manual_seed(3)
    n, lead = len(tokens), () if batch is None else (batch,)
    edges = torch.randn(n_layers, *lead, n_heads, n, n)
    edges = edges.tril() if causal else edges
    stream = torch.randn(n_layers + 1, *lead, n)
    value = torch.randn(lead) + 2
    return SimpleNamespace(
        value=value,
        tokens=stream[0],
        stream=stream,
        offset=value - stream.sum(-1),
        error=torch.full((n_layers + 1,), 3e-7),
        heads=edges.sum((-1, -2)),
        edges=lambda layer: edges[layer],
        bypass=torch.randn(n_layers, *lead, n),
        ffn=torch.randn(n_layers, *lead, n),
        layers=tuple(range(n_layers)),
        token_strings=list(tokens) if batch is None else [list(tokens)] * batch,
        target_name="logit(' are') - logit(' is')",
        model_name="some/<model>",
    )


def made_both_stacks(tokens, source, n_layers=3, n_below=2, n_heads=4):
    """The same of an encoder-decoder: its source sentence, the encoder's cuts, and edges of three kinds."""
    found = made_attribution(tokens, n_layers, n_heads)
    n, m, decoder = len(tokens), len(source), found.edges
    cross, below = torch.randn(n_layers, n_heads, n, m), torch.randn(n_below, n_heads, m, m)
    found.source_stream, found.beside = torch.randn(n_below + 1, m), torch.randn(n_layers + 1, m)
    found.source_tokens, found.source_strings = found.source_stream[0], (tuple(source),)
    found.offset = found.value - found.stream.sum(-1) - found.beside.sum(-1)
    found.source_offset = found.value - found.source_stream.sum(-1) - found.tokens.sum(-1)
    found.edges = lambda layer, stack=None: below[layer] if stack == "encoder" else decoder(layer)
    found.cross_edges = lambda layer: cross[layer]
    return found


def data_of(page: str) -> dict:
    """What the page holds, up to the first end tag."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def unpacked(block: dict) -> torch.Tensor:
    """A packed array, read without the package."""
    half = np.frombuffer(base64.b64decode(block["half"]), "<f2").astype(np.float64)
    values = half.reshape(len(block["scale"]), -1) * np.array(block["scale"])[:, None]
    return torch.from_numpy(values.reshape(block["shape"]))


def numbers(text: str) -> np.ndarray:
    """Whole numbers of 16 bits."""
    return np.frombuffer(base64.b64decode(text), "<u2").astype(int)
