"""The reference itself: its vectors must add up to Hugging Face's own hidden states before they judge others."""

import pytest
import reference
import torch
from tiny import FAMILIES, N_LAYERS, hugging_face, make


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_vectors_lead_to_the_next_hidden_state(name):
    """The parts of layer 0, summed and sent through the rest of Hugging Face's block, are the input of layer 1."""
    model = hugging_face(FAMILIES[name])
    tokens = torch.arange(3, 15).reshape(2, 6)
    layers, streams = reference.analyse(model, tokens), reference.streams(model, tokens)
    assert len(layers) == N_LAYERS
    tolerance = 2e-6 if FAMILIES[name].rms else 1e-12  # Hugging Face's RMSNorm rounds to float32 inside
    assert torch.allclose(layers[0].output, streams[1], rtol=0, atol=tolerance)
    if FAMILIES[name].post_norm:
        assert torch.allclose(layers[1].output, streams[2], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_pattern_is_not_trivial(name):
    """A uniform or one-hot pattern, or a default gain, would hide mistakes of the package."""
    model = hugging_face(FAMILIES[name])
    for layer in reference.analyse(model, torch.arange(3, 15).reshape(2, 6)):
        last = layer.pattern[:, :, -1]
        assert torch.allclose(last.sum(-1), torch.ones_like(last.sum(-1)), atol=1e-6)
        assert last.std() > 0.05 and last.amax() < 1 and (last > 0.01).sum() > last.numel() / 3
        assert (last[:, 0] - last[:, 1]).abs().max() > 0.01
    for parameter_name, parameter in model.named_parameters():
        assert parameter.std() > 1e-3, f"{parameter_name} is constant"


def test_weights_are_the_same_in_both_classes():
    """Hooked and bridged models of one family hold the same numbers."""
    hf = make("gpt2", "bridge").hf if "bridge" in _kinds() else make("gpt2", "hooked").hf
    assert torch.equal(hf.transformer.h[0].ln_1.weight, hugging_face(FAMILIES["gpt2"]).transformer.h[0].ln_1.weight)


def _kinds():
    from tiny import KINDS

    return KINDS
