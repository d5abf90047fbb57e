"""The names in docs/images/block_*.svg are those that the package reads off running models."""

import sys
from pathlib import Path

import pytest
import torch

import tl_norms
from tl_norms.blocks.structure import Add, Block, Norm
from tl_norms.names import resolve_scope
from tl_norms.plan import reader_of

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from block_drawing import IMAGES, POST_NORM, PRE_NORM, Box, Point, drawing  # noqa: E402

PREFIX = "blocks.0."


def _points(chain) -> list[Point]:
    return [part for part in chain if isinstance(part, Point)]


def _names(block: Block) -> list[str]:
    """The hooks of each point, as they are written in the drawing."""
    truths = [step.truth for step in block.steps if step.scope is not None]
    written = [
        " - ".join(name.removeprefix(PREFIX) for name in (*truth.plus, *truth.minus)) for truth in truths if truth
    ]
    return [block.stream.removeprefix(PREFIX), *written]


def _same_chain(chain, block: Block) -> None:
    assert [point.scope for point in _points(chain)][1:] == list(block.scopes)
    scopes = block.scopes
    for point in _points(chain)[1:]:
        assert {resolve_scope(name, scopes) for name in point.papers.split(", ")} == {point.scope}
    additions = [part.adds for part in chain if isinstance(part, Box) and part.adds is not None]
    assert additions == [step.operation.other for step in block.steps if isinstance(step.operation, Add)]
    norms = [part.module for part in chain if isinstance(part, Box) and part.label == "layer norm"]
    named = [step.operation.module.removeprefix(PREFIX) for step in block.steps if isinstance(step.operation, Norm)]
    assert norms[-len(named) :] == named


def _bridge(kind: str):
    pytest.importorskip("transformer_lens.model_bridge")
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if kind == "BertForMaskedLM":
        config = BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=64
        )
        model = BertForMaskedLM(config)
    else:
        config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=32)
        model = GPT2LMHeadModel(config)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return build_bridge_from_module(model.eval(), kind, hf_config=config, tokenizer=None)


@pytest.mark.parametrize("kind, chain", [("BertForMaskedLM", POST_NORM), ("GPT2LMHeadModel", PRE_NORM)])
def test_names_on_the_bridge(kind, chain):
    model = _bridge(kind)
    block = reader_of(model).blocks()[0]
    _same_chain(chain, block)
    assert [point.bridge for point in _points(chain)] == _names(block)
    drawn = {PREFIX + point.bridge for point in _points(chain)}
    drawn |= {PREFIX + name for part in chain if isinstance(part, Box) for name in part.bridge}
    assert drawn == set(tl_norms.required_hooks(model, "all", [0]))
    hooks = model.hook_dict
    for point in _points(chain):
        for alias in point.aliases:
            assert hooks[PREFIX + alias] is hooks[PREFIX + point.bridge], alias


@pytest.mark.filterwarnings("ignore:Hooked.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind, chain", [("HookedEncoder", POST_NORM), ("HookedTransformer", PRE_NORM)])
def test_names_of_hooked_models(kind, chain):
    try:
        import transformer_lens

        hooked, config = getattr(transformer_lens, kind), transformer_lens.HookedTransformerConfig
    except (ImportError, AttributeError):
        pytest.skip(f"this TransformerLens has no {kind}")
    model = hooked(
        config(
            n_layers=2,
            d_model=16,
            n_ctx=16,
            d_head=8,
            n_heads=2,
            d_mlp=32,
            d_vocab=32,
            act_fn="gelu",
            normalization_type="LN",
            attention_dir="bidirectional" if kind == "HookedEncoder" else "causal",
        )
    )
    block = reader_of(model).blocks()[0]
    _same_chain(chain, block)
    assert [point.hooked for point in _points(chain)] == _names(block)
    drawn = {PREFIX + name for point in _points(chain) for name in point.hooked.split(" - ")}
    drawn |= {PREFIX + name for part in chain if isinstance(part, Box) for name in part.hooked}
    assert drawn == set(tl_norms.required_hooks(model, "all", [0]))


@pytest.mark.parametrize("name, chain", [("block_post_norm.svg", POST_NORM), ("block_pre_norm.svg", PRE_NORM)])
def test_the_stored_drawings_are_made_of_these_names(name, chain):
    stored = (IMAGES / name).read_text(encoding="utf-8")
    for point in _points(chain):
        assert f">{point.bridge}<" in stored and f">{point.hooked.replace(' - ', ' − ')}<" in stored
    assert stored.count("<circle") == drawing("", "", chain).count("<circle")
