"""AttnLRP and GIM against forward passes written out by hand, whose products are split into halves one by one."""

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional

from tl_norms import faithfulness
from tl_norms.errors import UnsupportedArchitectureError
from tl_norms.faithfulness.methods import rules

TARGET = faithfulness.Target(11, 23)
BASELINE = 5


def half(a: Tensor, b: Tensor, product) -> Tensor:
    """a product whose two factors share what passes through it."""
    return 0.5 * (product(a, b.detach()) + product(a.detach(), b))


def times(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def norm(x: Tensor, gain: Tensor, beta: Tensor | None, eps: float, center: bool) -> Tensor:
    centred = x - x.mean(-1, keepdim=True) if center else x
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    found = centred / scale.detach() * gain
    return found if beta is None else found + beta


def softmax(scores: Tensor, kind: str) -> Tensor:
    """The true one, or for GIM its linearisation with the derivative at temperature 2."""
    if kind == "attnlrp":
        return scores.softmax(-1)
    warm = (scores / 2).softmax(-1).detach()
    jacobian = torch.diag_embed(warm) - warm[..., :, None] * warm[..., None, :]
    moved = (jacobian @ (scores - scores.detach()).nan_to_num(0)[..., None])[..., 0]
    return scores.softmax(-1).detach() + moved


def attention(q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
    """[head pos d_head] each, causal."""
    n = q.shape[1]
    scores = half(q, k, lambda a, b: a @ b.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1e30)
    return half(softmax(scores, kind), v, torch.matmul)


def heads(x: Tensor, n_heads: int) -> Tensor:
    return x.reshape(len(x), n_heads, -1).transpose(0, 1)


def gpt2(hf, embedding: Tensor, kind: str) -> Tensor:
    h = embedding + hf.transformer.wpe.weight[: len(embedding)]
    for block in hf.transformer.h:
        x = norm(h, block.ln_1.weight, block.ln_1.bias, block.ln_1.eps, True)
        q, k, v = (
            heads(part, tiny.N_HEADS) for part in (x @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        )  # noqa: E501
        mixed = attention(q, k, v, kind).transpose(0, 1).reshape(len(h), -1)
        h = h + mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
        x = norm(h, block.ln_2.weight, block.ln_2.bias, block.ln_2.eps, True)
        u = x @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        act = functional.gelu(u, approximate="tanh")
        act = (act / u).detach() * u if kind == "attnlrp" else act
        h = h + act @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    last = hf.transformer.ln_f
    return norm(h, last.weight, last.bias, last.eps, True) @ hf.lm_head.weight.T


def llama(hf, embedding: Tensor, kind: str) -> Tensor:
    h, n = embedding, len(embedding)
    cos, sin = hf.model.rotary_emb(h[None], torch.arange(n)[None])
    config = hf.config

    def rotated(x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * cos[0] + torch.cat([-right, left], -1) * sin[0]

    for block in hf.model.layers:
        x, attn, mlp = (
            norm(h, block.input_layernorm.weight, None, config.rms_norm_eps, False),
            block.self_attn,
            block.mlp,
        )
        q = rotated(heads(attn.q_proj(x), config.num_attention_heads))
        k = rotated(heads(attn.k_proj(x), config.num_key_value_heads))
        v = heads(attn.v_proj(x), config.num_key_value_heads)
        groups = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        h = h + attn.o_proj(attention(q, k, v, kind).transpose(0, 1).reshape(n, -1))
        x = norm(h, block.post_attention_layernorm.weight, None, config.rms_norm_eps, False)
        g, u = mlp.gate_proj(x), mlp.up_proj(x)
        act = functional.silu(g)
        act = (act / g).detach() * g if kind == "attnlrp" else act
        h = h + mlp.down_proj(half(act, u, times))
    return hf.lm_head(norm(h, hf.model.norm.weight, None, config.rms_norm_eps, False))


FORWARD = {"gpt2": gpt2, "llama_gqa": llama, "llama_mqa_biased": llama, "qwen2": llama}
CASES = [case for case in tiny.CASES if case[0] in FORWARD]


def by_hand(name: str, hf, tokens: Tensor, kind: str, baseline: int | None) -> tuple[Tensor, float]:
    """Relevance of every token, and the target's value."""
    table = hf.get_input_embeddings().weight.detach()
    embedding = table[tokens].clone().requires_grad_()
    logits = FORWARD[name](hf, embedding, kind)
    value = logits[-1, TARGET.good] - logits[-1, TARGET.bad]
    (gradient,) = torch.autograd.grad(value, embedding)
    reference = 0 if baseline is None else table[baseline]
    return ((embedding.detach() - reference) * gradient).sum(-1), float(value.detach())


@pytest.mark.parametrize("baseline", [None, BASELINE])
@pytest.mark.parametrize("kind", ["attnlrp", "gim"])
@pytest.mark.parametrize(("name", "model_kind"), CASES)
def test_rules_are_those_of_a_forward_pass_written_by_hand(name, model_kind, kind, baseline):
    made = tiny.make(name, model_kind)
    tokens = tiny.Tiny.tokens(1)
    wanted, value = by_hand(name, made.hf, tokens[0], kind, baseline)
    assert abs(value - float(TARGET.of(made.model, tokens).detach())) < 1e-5  # Llama's norms and softmax are float32
    found = getattr(faithfulness, kind)(made.model, tokens, TARGET, baseline=baseline)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=2e-6)
    plain = faithfulness.available()["gradient-x-input"].function(made.model, tokens, TARGET)
    assert (found - plain).abs().max() > 1e-3  # the rules change something


def test_attnlrp_on_an_encoder_and_gim_refused():
    if "bridge" not in tiny.KINDS:
        pytest.skip("encoders of TransformerLens itself have no such hooks")
    model = tiny.make("bert", "bridge").model
    tokens = tiny.Tiny.tokens(1)
    assert faithfulness.attnlrp(model, tokens, TARGET).isfinite().all()
    with pytest.raises(UnsupportedArchitectureError, match="hook_attn_scores comes too late"):
        faithfulness.gim(model, tokens, TARGET, baseline=BASELINE)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_hooks_that_only_look_on_are_noticed(kind, monkeypatch):
    """If edits did not act, relevance would silently be gradient x input."""
    made = tiny.make("gpt2", kind, fresh=True)
    monkeypatch.setattr(rules, "output", lambda model, tokens, edits=None: made.model(tokens))
    with pytest.raises(UnsupportedArchitectureError, match="do not reach the output"):
        faithfulness.attnlrp(made.model, tiny.Tiny.tokens(1), TARGET)
