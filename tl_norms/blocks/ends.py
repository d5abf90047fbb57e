"""What stands around the blocks, as names: joins between layers, the way to the logits, and what leaves an encoder.

    stream of layer 0 . block . join . block . .. . last stream
    last stream . final norm (or a head's dense, activation, norm) . unembedding . scale . softcap      -> logits
    last stream of the encoder . its norm                                                               -> memory

Found on a short run of the model itself, decided once; every join and every way is verified again on each cache.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedArchitectureError
from .forms import placed, places
from .modules import affine, float_attributes, unwrap
from .structure import Reader, Truth
from .trace import combination, distance, same, sum_error
from .values import Multiplied, Normed, find, kind_of, multipliers
from .whole_run import WholeRun, known_to, whole_run

_COARSE = 1e-5


@dataclass(frozen=True)
class Mapped:
    """A linear map with its bias: its module's path."""

    module: str


@dataclass(frozen=True)
class Activated:
    """An elementwise function."""

    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pooled:
    """One position stands for the sequence: the first."""

    position: int = 0


EndStep = Normed | Multiplied | Mapped | Activated | Pooled


@dataclass(frozen=True)
class Joins:
    """Between the layers of one stack.

    `streams` are the hooks of what enters each layer; what layer l writes enters layer l + 1 times `factors[l]`.
    """

    streams: tuple[str, ...]
    factors: tuple[float, ...]
    last: Truth  # what leaves the last layer


@dataclass(frozen=True)
class Head:
    """From the last stream to the model's outputs.

    outputs = softcap(scale * (steps(x) W + b)), softcap(z) = cap tanh(z / cap); `pooled` heads give one row, others
    one row per position. `hook` is that of W's output.
    """

    steps: tuple[EndStep, ...]
    unembed: str
    hook: str
    scale: float = 1.0
    cap: float | None = None

    @property
    def pooled(self) -> bool:
        return any(isinstance(step, Pooled) for step in self.steps)


@dataclass(frozen=True)
class Memory:
    """What a decoder reads of its encoder: the steps from the encoder's last stream to that."""

    steps: tuple[EndStep, ...]
    hook: str


def joins(reader: Reader) -> Joins:
    """How the layers of this stack are joined.

    Raises:
        UnsupportedArchitectureError: what a layer writes is not what the next one reads, scaled or not; or the layers
            run several times per forward pass, so that no input token enters the last pass.
    """
    read = known_to(reader)
    if ("joins", reader.stack) not in read:
        found = _joined(reader) if hasattr(reader.model, "adapter") else _hooked_joins(reader)
        read["joins", reader.stack] = found
    return read["joins", reader.stack]


def head(reader: Reader) -> Head | None:
    """The way from the last stream of this stack to the model's outputs; None for a model without a head.

    Raises:
        UnsupportedArchitectureError: there are outputs, but the way to them is not understood.
    """
    read = known_to(reader)
    if ("head", reader.stack) not in read:
        found = _found_head(reader) if hasattr(reader.model, "adapter") else _hooked_head(reader)
        read["head", reader.stack] = found
    return read["head", reader.stack]


def memory(encoder: Reader, hook: str) -> Memory:
    """The way from the encoder's last stream to what cross-attention reads, which has this hook.

    Raises:
        UnsupportedArchitectureError: it is not understood.
    """
    if not hasattr(encoder.model, "adapter"):
        return Memory((Normed("encoder_final_ln"),), hook)
    run = whole_run(encoder.model)
    last, goal = total(run.tensors, joins(encoder).last), run.tensors.get(hook)
    way = None if goal is None else _way(encoder, run, last, goal)
    if way is None:
        raise _refused(encoder, "the way from its encoder's last layer to its cross-attention is not known")
    return Memory(way, hook)


def _joined(reader: Reader) -> Joins:
    run, blocks = whole_run(reader.model), reader.blocks()
    streams = tuple(f"{reader.stack}.{layer}.hook_in" for layer in range(len(blocks)))
    if streams[0] in run.repeated:
        raise _refused(
            reader,
            f"its layers run several times per forward pass ({streams[0]} fires more than once), and a cache holds the "
            f"last pass only, whose input is no longer one of tokens",
        )
    factors = []
    for layer, block in enumerate(blocks):
        out = Truth((f"{reader.stack}.{layer}.hook_out",))
        if block is not None:
            last = block.steps[-1].truth
            if last is None:
                raise _refused(reader, f"what leaves {reader.stack}.{layer} is not hooked")
            out = last
        if layer + 1 == len(blocks):
            break
        written, read = total(run.tensors, out), run.tensors.get(streams[layer + 1])
        held = multipliers(find(reader.model, f"{reader.stack}.{layer}"), reader.model.original_model)
        fitted = None if block is None or written is None or read is None else combination(read, [written], held)
        if block is not None and fitted is None:
            raise _refused(
                reader, f"what {reader.stack}.{layer} writes ({' + '.join(out.plus)}) is not what the next layer reads"
            )
        factors.append(1.0 if fitted is None else fitted[0])
    last_block, whole = blocks[-1], run.tensors.get(f"{reader.stack}.{len(blocks) - 1}.hook_out")
    if last_block is not None and whole is not None and not same(whole, total(run.tensors, out)):
        raise _refused(reader, f"the last layer writes more than its feed-forward ({' + '.join(out.plus)})")
    return Joins(streams, tuple(factors), out)


def total(tensors: Mapping[str, Tensor], truth: Truth) -> Tensor | None:
    """The activation that a truth names, in a short run."""
    if any(hook not in tensors for hook in truth.hooks):
        return None
    value = sum((tensors[hook] for hook in truth.plus[1:]), tensors[truth.plus[0]])
    return sum((-tensors[hook] for hook in truth.minus), value)


def _found_head(reader: Reader) -> Head | None:
    run = whole_run(reader.model)
    if run.output is None or not run.output.is_floating_point() or getattr(reader.model, "unembed", None) is None:
        return None
    last = total(run.tensors, joins(reader).last)
    if last is None:
        raise _refused(reader, "what leaves its last layer is not hooked")
    hook = "unembed.hook_out"
    goal, raw = run.tensors.get("unembed.hook_in"), run.tensors.get(hook)
    if goal is None or raw is None:
        raise _refused(reader, "its unembedding does not expose its input and output")
    if goal.ndim == 2 and last.ndim == 3:  # a classifier reads one position
        pooled = _way(reader, run, last[:, 0], goal)
        way = None if pooled is None else (Pooled(0), *pooled)
    else:
        way = _way(reader, run, last, goal) if last.shape[:-1] == goal.shape[:-1] else None
    if way is None:
        raise _refused(reader, "the way from its last layer to its unembedding is not a chain of known steps")
    if _is_random(reader, way):
        return None
    scale, cap = _outputs(reader, raw, run.output)
    return Head(way, "unembed", hook, scale, cap)


def _is_random(reader: Reader, way: tuple[EndStep, ...]) -> bool:
    """Whether the checkpoint had no head, so that loading made a random one: transformers flags what it loaded."""
    blocks = getattr(reader.model, reader.stack).parameters()
    if not any(getattr(parameter, "_is_hf_initialized", False) for parameter in blocks):
        return False
    modules = [step.module for step in way if isinstance(step, Normed | Mapped)] + ["unembed"]
    weights = [parameter for name in modules for parameter in find(reader.model, name).parameters()]
    return any(not getattr(parameter, "_is_hf_initialized", False) for parameter in weights)


def _outputs(reader: Reader, raw: Tensor, output: Tensor) -> tuple[float, float | None]:
    """The scale and the softcap between the unembedding and the model's outputs."""
    tolerance = max(_COARSE, sum_error(raw.dtype))
    raw, output = raw.double(), output.double()
    if distance(raw, output) <= tolerance:
        return 1.0, None
    model = reader.model.original_model
    fitted = combination(output, [raw], multipliers(model))
    if fitted is not None:
        return fitted[0], None
    numbers = [1.0, *float_attributes(getattr(model, "config", None), reader.model.cfg)]
    caps = [getattr(reader.model.cfg, "output_logits_soft_cap", None), *(n for n in numbers), 15.0, 30.0]
    for cap in caps:
        for scale in (1.0, *numbers, *(1 / number for number in numbers)) if cap and cap > 0 else ():
            if distance(cap * torch.tanh(raw * scale / cap), output) <= tolerance:
                return scale, float(cap)
    raise _refused(reader, "its logits are neither its unembedding's output nor that scaled or soft-capped")


@dataclass(frozen=True)
class _Node:
    """A module outside the blocks that ran."""

    module: str
    read: Tensor
    wrote: Tensor
    norm: bool


def _nodes(reader: Reader, run: WholeRun) -> Iterator[_Node]:
    """Norms and linear maps outside the blocks, with what they read and wrote."""
    stacks = tuple(name for name, _ in reader.model.named_children() if name.endswith("blocks"))
    for name in run.tensors:
        path = name.removesuffix(".hook_in")
        if path == name or path.startswith(stacks) or f"{path}.hook_out" not in run.tensors:
            continue
        try:
            module = find(reader.model, path)
        except (AttributeError, IndexError, KeyError):
            continue
        kind = (type(module).__name__ + type(unwrap(module)).__name__).lower()
        read, wrote = run.tensors[name], run.tensors[f"{path}.hook_out"]
        if "norm" in kind or isinstance(unwrap(module), nn.Linear):
            yield _Node(path, read, wrote, "norm" in kind)
        else:
            yield from _inside(module, path, read)


def _inside(module: nn.Module, path: str, read: Tensor) -> Iterator[_Node]:
    """The norms and linear maps of a component that TransformerLens wraps whole (a prediction head)."""
    inner = unwrap(module)
    parts = {
        name: part
        for name, part in inner.named_modules()
        if name and (isinstance(part, nn.Linear) or "norm" in type(part).__name__.lower())
    }
    if not parts or not read.is_floating_point():
        return
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str):
        return lambda part, arguments, output: seen.__setitem__(name, (arguments[0].detach(), output.detach()))

    handles = [part.register_forward_hook(listen(name)) for name, part in parts.items()]
    try:
        with torch.no_grad():
            inner(read)
    except Exception:  # it wants more than its input: not a chain of steps
        return
    finally:
        for handle in handles:
            handle.remove()
    for name, (entered, left) in seen.items():
        yield _Node(f"{path}.original_component.{name}", entered, left, not isinstance(parts[name], nn.Linear))


def _way(reader: Reader, run: WholeRun, start: Tensor | None, goal: Tensor) -> tuple[EndStep, ...] | None:
    """Steps from one activation to another through modules outside the blocks; None if there are none."""
    nodes = list(_nodes(reader, run))
    ends = [reader.model.original_model, *(find(reader.model, node.module) for node in nodes)]
    held = [placed(part, place) for part in ends for place in places(part, goal.device)]
    functions = [*held, torch.tanh, functional.relu, functional.gelu]

    def search(value: Tensor, left: list[_Node]) -> tuple[EndStep, ...] | None:
        arrived = _before(value, goal, functions)
        if arrived is not None:
            return arrived
        for node in left:
            before = _before(value, node.read, functions)
            if before is None:
                continue
            rest = search(node.wrote, [other for other in left if other is not node])
            if rest is not None:
                return (*before, _step(reader, node), *rest)
        factors = [goal.shape[-1] ** -0.5, *multipliers(reader.model.original_model)]  # T5's is width ** -0.5
        fitted = combination(goal, [value], factors) if value.shape == goal.shape else None
        return None if fitted is None else (Multiplied(fitted[0]),)

    return None if start is None else search(start, nodes)


def _before(value: Tensor, read: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> tuple[EndStep, ...] | None:
    """What stands between a value and what a module read: nothing, or an activation."""
    if value.shape != read.shape:
        return None
    if same(value, read):
        return ()
    for function in functions:
        if same(function(value), read):
            return (Activated(function),)
    return None


def _step(reader: Reader, node: _Node) -> EndStep:
    if not node.norm:
        affine(find(reader.model, node.module), node.module)  # refuses what cannot be read
        return Mapped(node.module)
    return Normed(node.module, kind_of(reader, node.module, node.read))


def _hooked_joins(reader: Reader) -> Joins:
    """TransformerLens' own classes: the stream of a layer is what the layer before it wrote."""
    blocks = [block for block in reader.blocks() if block is not None]
    last = blocks[-1].steps[-1].truth
    if last is None:
        raise _refused(reader, "what leaves its last layer is not hooked")
    return Joins(tuple(block.stream for block in blocks), (1.0,) * (len(blocks) - 1), last)


def _hooked_head(reader: Reader) -> Head | None:
    """HookedTransformer, HookedEncoder and HookedEncoderDecoder: known from the configuration."""
    model, cfg = reader.model, reader.model.cfg
    steps: list[EndStep] = []
    if hasattr(model, "decoder"):
        steps.append(Normed("decoder_final_ln"))
        if getattr(cfg, "tie_word_embeddings", False):
            steps.append(Multiplied(cfg.d_model**-0.5))
    elif hasattr(model, "mlm_head"):
        steps += [Mapped("mlm_head"), Activated(model.mlm_head.act_fn), Normed("mlm_head.ln")]
    elif cfg.normalization_type is not None:
        steps.append(Normed("ln_final"))
    cap = float(getattr(cfg, "output_logits_soft_cap", 0) or 0)
    return Head(tuple(steps), "unembed", "", cap=cap if cap > 0 else None)


def _refused(reader: Reader, why: str) -> UnsupportedArchitectureError:
    kind = type(getattr(reader.model, "original_model", reader.model)).__name__
    return UnsupportedArchitectureError(
        f"{kind}: {why}, so nothing is carried past one block. What stays within a block works: "
        f"tl_norms.block_norms(cache)."
    )
