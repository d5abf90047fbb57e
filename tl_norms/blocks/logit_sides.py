"""Candidates for the way from a stream to queries or keys, with what a short run has behind their projections."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .ends import total
from .forms import decided_norm, norm_kind
from .logit_path import LogitSide, SideStep, Weighed, weights_in
from .modules import default_eps, unwrap
from .structure import Attention, Block, CrossAttention, Reader
from .values import Normed, Projected, entrances, find, kind_of


def side_candidates(
    reader: Reader, tensors: Mapping[str, Tensor], block: Block, attention: Attention, name: str
) -> Iterator[tuple[LogitSide, Tensor]]:
    at = attention.module
    if f"{at}.kv_a_proj_with_mqa.hook_in" in tensors:
        yield from _latent_sides(reader, tensors, block, attention, name)
        return
    if name == "k":
        owner = attention.values.rpartition(".v.")[0] or attention.values.rpartition(".v_norm.")[0] or at
        at = owner if f"{at}.k.hook_in" not in tensors else at
    entering = tensors.get(f"{at}.{name}.hook_in")
    module = find(reader.model, at)
    if entering is None or not hasattr(module, name):
        return
    weights = weights_in(reader, Weighed(f"{at}.{name}"))
    if entering.shape[-1] != weights.weight.shape[0]:
        return
    made = _weighed(reader, Weighed(f"{at}.{name}"), entering)
    blocks = [one for one in reader.blocks() if one is not None]
    norm, whole = _norm(reader, tensors, at, name, made)
    stream = None
    if name == "q" and isinstance(attention, CrossAttention):  # queries are the decoder's own
        before = next(number for number, step in enumerate(block.steps) if step.operation is attention)
        truth = block.steps[before - 1].truth if before else None
        stream = tensors.get(block.stream) if truth is None else total(tensors, truth)
    for _, layer, before in entrances(reader, tensors, block, blocks, at, attention, entering, stream):
        for kept in (None, *_halves(tensors, at, name, made)):
            columns = (None, None) if kept is None else (kept[0], (0, kept[1]))
            side = LogitSide(layer, (*before, Weighed(f"{at}.{name}", "", *columns)), (), norm, whole)
            cut = made if kept is None else made.unflatten(-1, (kept[0], -1))[..., : kept[1]].flatten(-2)
            for behind in (False,) if norm is None else (False, True):
                yield replace(side, behind=behind), cut


def _latent_sides(
    reader: Reader, tensors: Mapping[str, Tensor], block: Block, attention: Attention, name: str
) -> Iterator[tuple[LogitSide, Tensor]]:
    """Latent attention: queries by way of a narrow vector or not, keys in two parts."""
    at, blocks = attention.module, [one for one in reader.blocks() if one is not None]
    up, way = f"{at}.q_proj", (f"{at}.q_a_proj", f"{at}.q_a_layernorm", f"{at}.q_b_proj")
    down = f"{at}.kv_a_proj_with_mqa" if name == "k" else way[0] if f"{way[0]}.hook_in" in tensors else up
    entering = tensors.get(f"{down}.hook_in")
    if entering is None:
        return
    steps: tuple[SideStep, ...] = (Weighed(up),)
    shared: tuple[SideStep, ...] = ()
    if name == "k":
        latent, values = tensors[f"{at}.kv_b_proj.hook_in"], tensors[attention.values]
        n_heads = values.shape[1] if attention.heads_first else values.shape[2]
        width, columns = latent.shape[-1], tensors[f"{down}.hook_out"].shape[-1]
        plain = tensors[f"{at}.kv_b_proj.hook_out"].shape[-1] // n_heads - values.shape[-1]
        turned = columns - width
        kind = kind_of(reader, f"{at}.kv_a_layernorm", tensors[f"{at}.kv_a_layernorm.hook_in"])
        own = Weighed(f"{at}.kv_b_proj", "", n_heads, (0, plain), (n_heads, 0, turned))
        steps = (Projected(down, first=width), Normed(f"{at}.kv_a_layernorm", kind), own)
        shared = (Weighed(down, "", 1, (width, columns), (n_heads, plain, 0)),)
        parts = [(latent, own), (entering, shared[0])]
    elif down == way[0]:
        kind = kind_of(reader, way[1], tensors[f"{way[1]}.hook_in"])
        steps = (Weighed(way[0]), Normed(way[1], kind), Weighed(way[2]))
        parts = [(tensors[f"{way[2]}.hook_in"], steps[-1])]
    else:
        parts = [(entering, steps[0])]
    made = torch.stack([_weighed(reader, weights, x) for x, weights in parts]).sum(0)
    for _, layer, before in entrances(reader, tensors, block, blocks, at, attention, entering):
        yield LogitSide(layer, (*before, *steps), (*before, *shared) if shared else ()), made


def _weighed(reader: Reader, step: Weighed, x: Tensor) -> Tensor:
    weights = weights_in(reader, step)
    made = x @ weights.weight.to(x)
    return made if weights.bias is None else made + weights.bias.to(made)


def _halves(tensors: Mapping[str, Tensor], at: str, name: str, made: Tensor) -> list[tuple[int, int]]:
    """Queries beside a gate in one projection: the first half of every head."""
    hooked = tensors.get(f"{at}.q.hook_out")
    if name != "q" or f"{at}.hook_q_gate" not in tensors or hooked is None:
        return []
    width = tensors[f"{at}.k.hook_out"].shape[-1] if f"{at}.k.hook_out" in tensors else hooked.shape[-1]
    return [(made.shape[-1] // (2 * width), width)]


def _norm(
    reader: Reader, tensors: Mapping[str, Tensor], at: str, name: str, made: Tensor
) -> tuple[Normed | None, bool]:
    path = f"{at}.{name}_norm"
    read, wrote = tensors.get(f"{path}.hook_in"), tensors.get(f"{path}.hook_out")
    if read is None or wrote is None:
        return _unhooked_norm(reader, at), False
    if read.ndim == 4 and read.shape[1] != made.shape[1]:  # [b h n e]: every head has a norm of its own
        read, wrote = read.transpose(1, 2), wrote.transpose(1, 2)
    try:
        kind = kind_of(reader, path, read)
    except (UnsupportedArchitectureError, RuntimeError, TypeError):  # not a norm of plain vectors
        try:
            kind = decided_norm(find(reader.model, path), read, wrote, default_eps(reader.model))
        except (UnsupportedArchitectureError, RuntimeError):
            return None, False
    return Normed(path, kind), read.shape[-1] == made.shape[-1] and read.ndim == 3


def _unhooked_norm(reader: Reader, at: str) -> Normed | None:
    """Llama 4 normalises queries and keys by one norm without weights, which has no hooks."""
    inner = unwrap(find(reader.model, at))
    norm = getattr(inner, "qk_norm", None)
    if not isinstance(norm, nn.Module):
        return None
    like = next(inner.parameters())
    width, dtype = int(getattr(inner, "head_dim", 1)), torch.promote_types(like.dtype, torch.float32)
    try:
        return Normed(f"{at}.qk_norm", norm_kind(norm, default_eps(reader.model), width, dtype, like.device))
    except (UnsupportedArchitectureError, RuntimeError):
        return None
