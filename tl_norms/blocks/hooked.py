"""The classes of TransformerLens itself (2 and 3): HookedTransformer, HookedEncoder, HookedEncoderDecoder.

Their blocks are known from the configuration.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .modules import is_elementwise
from .short_run import without_user_hooks
from .structure import (
    Add,
    Affine,
    Attention,
    Block,
    Chain,
    CrossAttention,
    FeedForward,
    FeedForwardWeights,
    Norm,
    NormForm,
    Truth,
)
from .value_weights import value_weights

try:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES
except ImportError:  # TransformerLens 2 has no such architectures
    POST_NORM_ARCHITECTURES = set()

_NORMS = ("LN", "LNPre", "RMS", "RMSPre")


class HookedReader:
    """Reads the classes of TransformerLens itself."""

    def __init__(self, model: nn.Module, stack: str = "blocks"):
        self.model, self.stack = model, stack
        self.cfg = model.cfg

    def blocks(self) -> tuple[Block | None, ...]:
        blocks = getattr(self.model, self.stack)
        readers = {"BertBlock": self._post_norm, "T5Block": self._t5}
        read = readers.get(type(blocks[0]).__name__, self._pre_norm)
        return tuple(read(layer) for layer in range(len(blocks)))

    def decided(self, what: Hashable, decide: Callable[[], Any]) -> Any:
        return decide()  # these classes have few parts: looking anew costs little

    def _t5(self, layer: int) -> Block:
        """HookedEncoderDecoder: pre-norm; in the decoder, cross-attention between attention and feed-forward."""
        at = f"{self.stack}.{layer}."
        decoder = hasattr(self._find(at), "cross_attn")
        chain = Chain()
        attn = chain.add(self._attention(at), 0, "attn", Truth((at + "hook_attn_out",)))
        mid, scope, norm = chain.add(Add(0), attn, "attn_res", Truth((at + "hook_resid_mid",))), "attn_res", "ln2"
        if decoder:
            names = (at + "cross_attn", at + "cross_attn.hook_pattern", at + "cross_attn.hook_v")
            crossed = CrossAttention(*names, mixed=at + "cross_attn.hook_z")
            scope, norm = scope + "_cross", "ln3"
            cross = chain.add(crossed, 0, scope, Truth((at + "hook_cross_attn_out",)))
            scope += "_res"
            mid = chain.add(Add(mid), cross, scope, Truth((at + "hook_resid_mid_cross",)))
        scope += "_ln"
        inner = self._norm_before(chain, at, mid, scope, norm)
        ff = chain.add(FeedForward(at + "mlp"), inner, scope + "_ff", Truth((at + "hook_mlp_out",)))
        chain.add(Add(mid), ff, scope + "_ff_res", Truth((at + "hook_resid_post",)))
        return Block(layer, at + "hook_resid_pre", tuple(chain.steps))

    def _post_norm(self, layer: int) -> Block:
        """HookedEncoder: attn . res . ln1 . ff . res . ln2."""
        at = f"blocks.{layer}."
        post = Truth((at + "hook_resid_post",))
        normed_mid = Truth(post.plus, minus=(at + "hook_mlp_out",))  # ln1's output itself has no hook
        chain = Chain()
        attn = chain.add(self._attention(at), 0, "attn", Truth((at + "hook_attn_out",)))
        mid = chain.add(Add(0), attn, "attn_res", Truth((at + "hook_resid_mid",)))
        ln1 = chain.add(Norm(at + "ln1", None), mid, "attn_res_ln", normed_mid)
        ff = chain.add(FeedForward(at + "mlp"), ln1, "attn_res_ln_ff", Truth((at + "hook_mlp_out",)))
        out = chain.add(Add(ln1), ff, "attn_res_ln_ff_res", post)
        chain.add(Norm(at + "ln2", None), out, "attn_res_ln_ff_res_ln", Truth((at + "hook_normalized_resid_post",)))
        return Block(layer, at + "hook_resid_pre", tuple(chain.steps))

    def _pre_norm(self, layer: int) -> Block:
        """HookedTransformer: sequential or parallel, with or without norms after the branches."""
        at, block = f"blocks.{layer}.", self.model.blocks[layer]
        attn_out, mlp_out = Truth((at + "hook_attn_out",)), Truth((at + "hook_mlp_out",))
        resid_post = Truth((at + "hook_resid_post",))
        # in OLMo 2 and 3 ln1 and ln2 stand after their branches, which only the architecture's name tells
        after = getattr(self.cfg, "original_architecture", None) in POST_NORM_ARCHITECTURES
        after_attn = "ln1" if after else "ln1_post" if hasattr(block, "ln1_post") else None
        after_mlp = "ln2" if after else "ln2_post" if hasattr(block, "ln2_post") else None
        chain = Chain()
        scope = "attn"
        mixed = Truth((at + "attn.hook_z",), sent_by=at + "attn")
        branch = chain.add(self._attention(at), 0, scope, mixed if after_attn else attn_out)
        if after_attn:
            scope += "_ln"
            branch = chain.add(Norm(at + after_attn, None), branch, scope, attn_out)
        if self.cfg.attn_only:
            chain.add(Add(0), branch, scope + "_res", resid_post)
        elif self.cfg.parallel_attn_mlp:
            inner = self._norm_before(chain, at, 0, None)
            hidden = chain.add(FeedForward(at + "mlp"), inner)
            if after_mlp:
                hidden = chain.add(Norm(at + after_mlp, None), hidden)
            both = chain.add(Add(hidden), branch, scope + "_ff", Truth(attn_out.plus + mlp_out.plus))
            chain.add(Add(0), both, scope + "_ff_res", resid_post)
        else:
            scope += "_res"
            mid = chain.add(Add(0), branch, scope, Truth((at + "hook_resid_mid",)))
            inner = mid
            if not after and type(block.ln2) is not nn.Identity:
                scope += "_ln"
                inner = self._norm_before(chain, at, mid, scope)
            scope += "_ff"
            neurons = Truth((at + "mlp.hook_post",), sent_by=at + "mlp")
            hidden = chain.add(FeedForward(at + "mlp"), inner, scope, neurons if after_mlp else mlp_out)
            if after_mlp:
                scope += "_ln"
                hidden = chain.add(Norm(at + after_mlp, None), hidden, scope, mlp_out)
            chain.add(Add(mid), hidden, scope + "_res", resid_post)
        return Block(layer, at + "hook_resid_pre", tuple(chain.steps))

    def _norm_before(self, chain: Chain, at: str, reads: int, scope: str | None, name: str = "ln2") -> int:
        """The feed-forward's: hook_normalized is before the gain, so only what W_in makes of its output is hooked."""
        if self.cfg.normalization_type is None:
            return reads
        hooked = hasattr(self._find(at + "mlp"), "hook_pre")
        truth = Truth((at + "mlp.hook_pre",), through=at + "mlp") if hooked else None
        return chain.add(Norm(at + name, None), reads, scope, truth)

    def _attention(self, at: str) -> Attention:
        names = (at + "attn", at + "attn.hook_pattern", at + "attn.hook_v")
        clip = getattr(self.cfg, "clip_qkv", None)
        return Attention(*names, clip=None if clip is None else float(clip), mixed=at + "attn.hook_z")

    def attention_output(self, step: Attention) -> Affine:
        attn = self._find(step.module)
        return Affine(attn.W_O.flatten(0, 1), attn.b_O)

    def attention_values(self, step: Attention) -> Affine:
        return value_weights(self._find(step.module), step.module, len(self.attention_output(step).weight))

    def value_bias(self, step: Attention) -> Tensor | None:
        return self._find(step.module).b_V

    def norm(self, step: Norm) -> NormForm:
        norm = self._find(step.module)
        kind = type(norm).__name__
        centers = {"LayerNorm": True, "LayerNormPre": True, "RMSNorm": False, "RMSNormPre": False}
        if kind not in centers:
            raise UnsupportedArchitectureError(
                f"{step.module} is a {kind}; expected one of {', '.join(centers)} "
                f"(cfg.normalization_type one of {', '.join(_NORMS)})."
            )
        eps = float(norm.eps) if hasattr(norm, "eps") else float(self.cfg.eps)
        gain, beta = getattr(norm, "w", None), getattr(norm, "b", None)
        return NormForm(centers[kind], eps, gain, beta, folded=kind.endswith("Pre"))

    def inner_norm(self, step: Attention) -> NormForm:
        raise UnsupportedArchitectureError(f"{step.module} has no norm before its output projection.")

    def feed_forward(self, step: FeedForward, x: Tensor) -> tuple[FeedForwardWeights, ...]:
        mlp = self._find(step.module)
        if not hasattr(mlp, "W_in"):
            raise UnsupportedArchitectureError(
                f"{step.module} is a {type(mlp).__name__} without W_in and W_out; scopes up to the attention block "
                f"work: tl_norms.block_norms(cache)."
            )
        activation = mlp.act_fn
        if getattr(mlp, "ln", None) is not None or not is_elementwise(activation, mlp.W_in.device):
            raise UnsupportedArchitectureError(
                f"the activation of {step.module} ({self.cfg.act_fn}) is not elementwise, so integrated gradients have "
                f"no closed form for it. Ask for scopes without 'ff': tl_norms.block_norms(cache)."
            )
        out = Affine(mlp.W_out, mlp.b_out)
        if getattr(mlp, "W_gate", None) is None:
            return (FeedForwardWeights(Affine(mlp.W_in, mlp.b_in), None, out, activation),)
        # a GatedMLP adds b_in to the neurons, after the product: it is a bias of the output
        out = Affine(mlp.W_out, mlp.b_out + mlp.b_in @ mlp.W_out)
        return (FeedForwardWeights(Affine(mlp.W_gate, None), Affine(mlp.W_in, None), out, activation),)

    def projection(self, name: str) -> Affine:
        mlp = self._find(name)
        gate = getattr(mlp, "W_gate", None)
        return Affine(mlp.W_in, mlp.b_in) if gate is None else Affine(gate, None)

    def output_projection(self, name: str) -> Affine:
        module = self._find(name)
        if hasattr(module, "W_O"):
            return Affine(module.W_O.flatten(0, 1), module.b_O)
        return Affine(module.W_out, module.b_out)

    @torch.no_grad()
    def recompute(self, step: Norm | FeedForward, x: Tensor) -> Tensor:
        module = self._find(step.module)
        with without_user_hooks(self.model):
            return module(x.to(self.cfg.dtype)).to(x)

    def equivalents(self, hook: str) -> tuple[str, ...]:
        return (hook,)

    def _find(self, path: str) -> nn.Module:
        return self.model.get_submodule(path.rstrip("."))
