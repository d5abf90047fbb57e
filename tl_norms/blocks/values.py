"""How values come from the stream: x_j -> v_j of every attention, as names, found on a short run and decided once.

    pre-norm (or none) . multiplier (or none) . W_V, b_V . heads split . norm on values (or none) . clamp (or none)
    latent attention: pre-norm . down-projection . norm . up-projection

Values can be shared: then the path reads the stream of the layer that made them. Cross-attention reads what leaves the
encoder. A path says where the stream is read and through which modules it goes; weights are read afresh for each cache,
and every path is verified there by rebuilding the cached values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .forms import decided_norm, norm_form, norm_kind, normed
from .modules import affine, component, default_eps, float_attributes, unwrap
from .structure import Affine, Attention, Block, CrossAttention, Norm, NormForm, NormKind, Reader
from .trace import combination, distance, same
from .whole_run import known_to, whole_run

_COARSE = 1e-4  # transformers computes norms in float32 whatever the model's dtype
_HALF = 5e-2  # runs in half precision: what a norm, a projection and their rounding may differ by


@dataclass(frozen=True)
class Normed:
    """A norm: its module's path, and its form (None: known from the module, in TransformerLens' own classes)."""

    module: str
    kind: NormKind | None = None


@dataclass(frozen=True)
class Multiplied:
    """A constant of the model."""

    factor: float


@dataclass(frozen=True)
class Projected:
    """A linear map: its module's path.

    `first` keeps that many columns (the latent part of a joint down-projection); `last_of_head` keeps the last columns
    of every head (the values of a joint up-projection to keys and values).
    """

    module: str
    first: int | None = None
    last_of_head: tuple[int, int] | None = None  # heads, columns kept of each


PathStep = Normed | Multiplied | Projected


@dataclass(frozen=True)
class ValuePath:
    """From a stream to the values of one attention."""

    stream: str  # hook name of what is read; empty for an encoder's output that is not hooked
    layer: int | None  # the layer whose input that is; None: what leaves the encoder
    steps: tuple[PathStep, ...]
    head_norm: Normed | None = None  # on every head's values


def value_paths(reader: Reader) -> Mapping[str, ValuePath]:
    """The value path of every attention of this stack, by the attention's module path.

    Raises:
        UnsupportedArchitectureError: the values of some attention are not explained by any path that is known.
    """
    read = known_to(reader)
    if ("paths", reader.stack) not in read:
        read["paths", reader.stack] = dict(_all_paths(reader))
    return read["paths", reader.stack]


def _all_paths(reader: Reader) -> Iterator[tuple[str, ValuePath]]:
    bridge = hasattr(reader.model, "adapter")
    tensors = whole_run(reader.model).tensors if bridge else {}
    blocks = [block for block in reader.blocks() if block is not None]
    for block in blocks:
        for step in block.steps:
            if isinstance(step.operation, Attention):
                attention = step.operation
                path = (
                    _found(reader, tensors, block, blocks, attention) if bridge else _hooked(reader, block, attention)
                )
                yield attention.module, path


def _hooked(reader: Reader, block: Block, attention: Attention) -> ValuePath:
    """TransformerLens' own classes: known from the configuration."""
    at = attention.module.rpartition(".")[0]
    projected = Projected(attention.module)
    if isinstance(attention, CrossAttention):
        return ValuePath("", None, (projected,))
    first = block.steps[0].operation  # a norm behind attention leaves none before it
    behind = any(
        isinstance(step.operation, Norm) and step.operation.module == f"{at}.ln1" and step.reads > 0
        for step in block.steps
    )
    norm = getattr(find(reader.model, at), "ln1", None)
    before = first is attention and not behind and norm is not None and type(norm) is not nn.Identity
    return ValuePath(block.stream, block.layer, ((Normed(f"{at}.ln1"),) if before else ()) + (projected,))


def _found(
    reader: Reader, tensors: Mapping[str, Tensor], block: Block, blocks: list[Block], attention: Attention
) -> ValuePath:
    """The first candidate that rebuilds the values of the short run."""
    values = tensors.get(attention.values)
    if values is None:
        raise _refused(reader, attention, "its values did not appear in a run of five tokens")
    tolerance = _HALF if values.element_size() <= 2 else _COARSE
    closest = float("inf")
    for path in _candidates(reader, tensors, block, blocks, attention):
        stream = tensors.get(path.stream)
        if stream is None:
            continue
        try:
            made = _run(reader, path, attention, stream, values)
        except RuntimeError:  # shapes that do not belong together: not this candidate
            continue
        closest = min(closest, distance(made, values))
        if distance(made, values) < tolerance:
            return path
    raise _refused(
        reader, attention, f"no norm, projection and multiplier of it give its values (closest: off by {closest:.1e})"
    )


def _candidates(
    reader: Reader, tensors: Mapping[str, Tensor], block: Block, blocks: list[Block], attention: Attention
) -> Iterator[ValuePath]:
    at = attention.values.rpartition(".v.")[0] or attention.values.rpartition(".v_norm.")[0] or attention.module
    module = find(reader.model, at)  # of another layer, where values are shared
    head_norm = None
    if attention.values.endswith("v_norm.hook_out"):
        name, read, wrote = f"{at}.v_norm", tensors.get(f"{at}.v_norm.hook_in"), tensors.get(attention.values)
        if read is None or wrote is None:
            return
        head_norm = Normed(name, decided_norm(find(reader.model, name), read, wrote, default_eps(reader.model)))
    for projection, entering in _projections(reader, tensors, module, at, attention):
        for stream, layer, before in entrances(reader, tensors, block, blocks, at, attention, entering):
            yield ValuePath(stream, layer, (*before, *projection), head_norm)


def _projections(
    reader: Reader, tensors: Mapping[str, Tensor], module: nn.Module, at: str, attention: Attention
) -> Iterator[tuple[tuple[PathStep, ...], Tensor]]:
    """The steps from what enters the value projection, and that tensor."""
    for name in ("v", "k"):  # Gemma 4 has layers whose keys are its values
        entering = tensors.get(f"{at}.{name}.hook_in")
        if entering is not None and hasattr(module, name):
            yield (Projected(f"{at}.{name}"),), entering
    down = tensors.get(f"{at}.kv_a_proj_with_mqa.hook_in")
    latent, values = tensors.get(f"{at}.kv_b_proj.hook_in"), tensors.get(attention.values)
    if down is not None and latent is not None and values is not None:
        heads = values.shape[1] if attention.heads_first else values.shape[2]
        up = Projected(f"{at}.kv_b_proj", last_of_head=(heads, values.shape[-1]))
        name, width = f"{at}.kv_a_layernorm", latent.shape[-1]
        kind = kind_of(reader, name, tensors[f"{name}.hook_in"])
        yield (Projected(f"{at}.kv_a_proj_with_mqa", first=width), Normed(name, kind), up), down


def entrances(
    reader: Reader,
    tensors: Mapping[str, Tensor],
    block: Block,
    blocks: list[Block],
    at: str,
    attention: Attention,
    entering: Tensor,
    stream: Tensor | None = None,
) -> Iterator[tuple[str, int | None, tuple[PathStep, ...]]]:
    """Where a stream becomes what enters a projection: hook, layer, and the steps before the projection.

    The stream is that of the layer, unless another one is given.
    """
    if isinstance(attention, CrossAttention) and stream is None:
        yield f"{at}.v.hook_in", None, ()
        return
    source = next((b for b in blocks if at.startswith(b.attention()[1].module)), block)
    stream = tensors.get(source.stream) if stream is None else stream
    if stream is None or stream.shape != entering.shape:
        return
    if same(stream, entering):
        yield source.stream, source.layer, ()
        return
    prefix = at.rpartition(".")[0]
    names = [name for name, child in find(reader.model, prefix).named_children() if not name.startswith("_")]
    for name in names:
        path = f"{prefix}.{name}"
        read, wrote = tensors.get(f"{path}.hook_in"), tensors.get(f"{path}.hook_out")
        if read is None or wrote is None or not same(read, stream) or "norm" not in _kind(find(reader.model, path)):
            continue
        owners = find(reader.model, prefix), getattr(reader.model, "original_model", None)
        fitted = combination(entering, [wrote], multipliers(*owners))
        if fitted is None:
            continue
        times = () if fitted[0] == 1 else (Multiplied(fitted[0]),)
        yield source.stream, source.layer, (Normed(path, kind_of(reader, path, read)), *times)


def _run(reader: Reader, path: ValuePath, attention: Attention, x: Tensor, like: Tensor) -> Tensor:
    """The values that a path gives, as they are cached; without clamp, which stands behind the hook."""
    for step in path.steps:
        if isinstance(step, Normed):
            x = run_norm(weights_of(reader, step), x)
        elif isinstance(step, Multiplied):
            x = x * step.factor
        else:
            weights = value_projection(reader, step)
            x = x @ weights.weight.to(x)
            x = x if weights.bias is None else x + weights.bias.to(x)
    d_head = like.shape[-1] if like.ndim == 4 else x.shape[-1]
    heads = x.reshape(*x.shape[:2], -1, d_head)
    if path.head_norm is not None:
        heads = run_norm(weights_of(reader, path.head_norm), heads)
    if attention.heads_first:
        heads = heads.transpose(1, 2)
    return heads.reshape(like.shape)


def value_projection(reader: Reader, step: Projected) -> Affine:
    """Weights [in out] of a projection on a value path; heads one after the other, grouped ones once."""
    module = find(reader.model, step.module)
    if not hasattr(reader.model, "adapter"):
        weight = getattr(module, "_W_V", None)
        weight = module.W_V if weight is None else weight  # [head d e]
        bias = getattr(module, "_b_V", None)
        bias = module.b_V if bias is None else bias
        return Affine(weight.transpose(0, 1).flatten(1), bias.flatten())
    whole = affine(module, step.module)
    weight, bias = whole.weight, whole.bias
    if step.first is not None:
        weight, bias = weight[:, : step.first], None if bias is None else bias[: step.first]
    if step.last_of_head is not None:
        heads, kept = step.last_of_head
        weight = weight.unflatten(1, (heads, -1))[..., -kept:].flatten(1)
        bias = None if bias is None else bias.unflatten(0, (heads, -1))[..., -kept:].flatten()
    return Affine(weight, bias)


def find(model: nn.Module, path: str) -> nn.Module:
    """A module by its path, through lists and components."""
    return component(model, path) if hasattr(model, "adapter") else model.get_submodule(path)


def kind_of(reader: Reader, path: str, read: Tensor) -> NormKind:
    """The form of a norm that was seen to read an activation."""
    module, eps = find(reader.model, path), default_eps(reader.model)
    return norm_kind(module, eps, read.shape[-1], read.dtype, read.device, any_of=True)


def weights_of(reader: Reader, step: Normed) -> NormForm:
    """A norm's weights as they are now."""
    if step.kind is None:
        return reader.norm(Norm(step.module, None))
    return norm_form(find(reader.model, step.module), step.kind, default_eps(reader.model))


def run_norm(form: NormForm, x: Tensor) -> Tensor:
    """A norm itself, in float32 at least."""
    return normed(x.to(torch.promote_types(x.dtype, torch.float32)), form)


def multipliers(*owners: nn.Module | None) -> list[float]:
    """Numbers that modules and configurations hold by name, and their inverses."""
    held: list[object] = []
    for owner in owners:
        if owner is not None:
            inner = unwrap(owner)
            held += [inner, getattr(inner, "config", None)]
    found = float_attributes(*held)
    return [*found, *(1 / value for value in found)]


def _kind(module: nn.Module) -> str:
    return (type(module).__name__ + type(unwrap(module)).__name__).lower()


def _refused(reader: Reader, attention: Attention, why: str) -> UnsupportedArchitectureError:
    kind = type(unwrap(find(reader.model, attention.module))).__name__
    return UnsupportedArchitectureError(
        f"{attention.module} ({kind}): {why}, so the way from the stream to its values is not known. Everything within "
        f"one block works: tl_norms.block_norms(cache)."
    )
