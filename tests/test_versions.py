"""One set of numbers: bridges and HookedTransformers, TransformerLens 2, 3 and 4."""

import json
from pathlib import Path

import pytest
import reference
import torch
from tiny import CASES, FAMILIES, KINDS, hugging_face, make

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")
STORED = Path(__file__).parent / "fixtures" / "attention_block.json"
both = pytest.mark.skipif(len(KINDS) < 2, reason="only TransformerLens 3 has both kinds of model")


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.converter])
def test_hooked_and_bridge_agree(name, dtype):
    """The same weights, unprocessed, through both kinds of model: every number to 1e-6."""
    one, two = (make(name, kind, dtype) for kind in ("bridge", "hooked"))
    left, right = one.cache(), two.cache()
    first, second = tl_norms.block_norms(left, SCOPES), tl_norms.block_norms(right, SCOPES)
    assert first.scopes == second.scopes and tl_norms.scopes(one.model) == tl_norms.scopes(two.model)
    assert first.processing == second.processing == () and first.causal == second.causal

    def near(left, right, limit=1e-6):
        return left.shape == right.shape and float((left - right).abs().max() / right.abs().max()) < limit

    for scope in SCOPES:
        assert near(first[scope], second[scope])
        assert near(first.mixing_ratio(scope), second.mixing_ratio(scope))
        a, b = tl_norms.decompose(left, 1, scope), tl_norms.decompose(right, 1, scope)
        rounding = 1e-6 if dtype == torch.float64 else 5e-6  # single coordinates, after two float32 forward passes
        assert near(a.vectors(), b.vectors(), rounding) and near(a.total(), b.total(), rounding)
        assert (a.remainder - b.remainder).abs().max() < rounding
    for quantity in ("value_norms", "head_norms", "attention", "attention_residual"):
        assert near(getattr(first, quantity), getattr(second, quantity)), quantity
    assert near(tl_norms.value_vectors(left, 0), tl_norms.value_vectors(right, 0))


@pytest.mark.parametrize("name, kind", [case for case in CASES if case[0] in ("gpt2", "llama_gqa", "gemma", "bert")])
def test_stored_numbers(name, kind):
    """What the reference gave once (TransformerLens plays no part in it): the same in every version."""
    tiny = make(name, kind)
    stored = json.loads(STORED.read_text())[name]
    cache = tiny.cache(torch.tensor(stored["tokens"]))
    norms = tl_norms.block_norms(cache, SCOPES)
    limit = 1e-6 if tiny.family.rms else 1e-9
    for scope in SCOPES:
        assert norms[scope][:, 0].flatten().tolist() == pytest.approx(stored["norms"][scope], rel=limit, abs=1e-12)
        ratios = norms.mixing_ratio(scope).flatten().tolist()
        assert ratios == pytest.approx(stored["mixing_ratio"][scope], rel=limit, abs=1e-12)
    assert norms.value_norms.flatten().tolist() == pytest.approx(stored["value_norms"], rel=limit)


def compute() -> dict:
    """The stored numbers, from the reference alone: run this file to write them anew."""
    tokens = torch.tensor([[7, 11, 3, 42]])
    out = {}
    for name in ("gpt2", "llama_gqa", "gemma", "bert"):
        layers = reference.analyse(hugging_face(FAMILIES[name]), tokens)
        out[name] = {
            "tokens": tokens.tolist(),
            "norms": {s: [x for layer in layers for x in layer.norms(s).flatten().tolist()] for s in SCOPES},
            "mixing_ratio": {
                s: [x for layer in layers for x in layer.mixing_ratio(s).flatten().tolist()] for s in SCOPES
            },
            "value_norms": [x for layer in layers for x in layer.value_norms.flatten().tolist()],
        }
    return out


def test_the_reference_still_gives_the_stored_numbers():
    stored, now = json.loads(STORED.read_text()), compute()
    for name in stored:
        for scope in SCOPES:
            assert now[name]["norms"][scope] == pytest.approx(stored[name]["norms"][scope], rel=1e-6, abs=1e-12)


if __name__ == "__main__":
    STORED.write_text(json.dumps(compute()) + "\n")
