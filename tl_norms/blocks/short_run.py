"""The short run that a bridge is read off: five tokens, each block computing in float64 on tensors of ordinary size.

A layout belongs to a model's code, not to its weights, so it is read where nothing can hide it. While a block runs
- it computes in float64 (float32 if it cannot), whatever the model's dtype, on a temporary copy of its own weights:
  one block at a time, stacked experts excepted, which stay as they are;
- what enters it is a fixed stream of size one: no massive activation, no scale of the embeddings;
- gains and biases of its norms are fixed numbers, another row for each, and matrices that are zero, or so small or so
  large that a branch would vanish beside the other, are brought to ordinary size.
So a freshly initialised model, one in half precision and one with massive activations are read like any other, and
reading them again after training gives the same. Parameters themselves are never written to.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, TLNormsError, UnsupportedArchitectureError
from .compat import listening, without_switches, without_user_hooks
from .trace import Trace
from .trial import TOKENS, few_tokens, in_eval_mode

_ORDINARY = 10.0  # matrices whose typical entry is within this factor of 1 / sqrt(d_model) are left as they are
T = TypeVar("T")


def read_blocks(model: nn.Module, stack: str, read: Callable[[int, Trace], T]) -> tuple[T, ...]:
    """Run the model once; after each block of the stack ran, `read(layer, trace)` while its weights are as they were.

    Raises:
        UnsupportedArchitectureError: the model, or one of the blocks, does not run.
        NonFiniteError: a weight is NaN or infinite. Otherwise what `read` raises.
    """
    failures: list[Exception] = []
    for dtype in _dtypes(getattr(model, stack)):
        try:
            return _ShortRun(model, stack, read, dtype).results()
        except TLNormsError:
            raise
        except Exception as error:  # whatever a model raises in this dtype; it may run in the next
            failures.append(error)
    first = failures[0]
    raise UnsupportedArchitectureError(
        f"{type(model.original_model).__name__} could not be run on {TOKENS} tokens to read its layout "
        f"({type(first).__name__}: {first})."
    ) from first


def _dtypes(blocks: nn.Module) -> list[torch.dtype | None]:
    """Dtypes to try, best first; None: every block as it is, its weights untouched."""
    double = all(p.dtype == torch.float64 for p in blocks.parameters() if p.is_floating_point())
    return [torch.float64] if double else [torch.float64, torch.float32, None]


class _ShortRun:
    """One attempt: what was heard, and what was read."""

    def __init__(self, model: nn.Module, stack: str, read: Callable[[int, Trace], Any], dtype: torch.dtype | None):
        self.model, self.stack, self.read, self.dtype = model, stack, read, dtype
        self.tensors: dict[str, Tensor] = {}
        self.read_off: dict[int, Any] = {}
        self.paused = False

    def results(self) -> tuple[Any, ...]:
        blocks = list(getattr(self.model, self.stack))
        with ExitStack() as stack, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge names hooks that are switched off
            stack.enter_context(torch.no_grad())
            stack.enter_context(in_eval_mode(self.model))
            stack.enter_context(without_switches(self.model))
            stack.enter_context(without_user_hooks(self.model))
            stack.enter_context(listening(self.model, self.stack + ".", self._hear))
            for layer, block in enumerate(blocks):
                self._prepare(layer, block, stack)
            tokens, extra = few_tokens(self.model)
            self.model.run_with_cache(tokens, names_filter=lambda name: False, **extra)
        if silent := [layer for layer in range(len(blocks)) if layer not in self.read_off]:
            raise RuntimeError(f"{self.stack} {silent} did not run")
        return tuple(self.read_off[layer] for layer in range(len(blocks)))

    def _hear(self, name: str, tensor: Any) -> None:
        if isinstance(tensor, tuple):
            tensor = tensor[0] if tensor else None
        if not self.paused and isinstance(tensor, Tensor):
            self.tensors[name] = tensor.detach().clone()  # cloned: some models add to it in place

    def _prepare(self, layer: int, block: nn.Module, stack: ExitStack) -> None:
        """Change what enters the block, and its weights, whenever it runs; read it when it ran first."""
        running = stack.enter_context(ExitStack())
        entered: list[torch.dtype] = []

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            given = (*args, kwargs.get("hidden_states"))
            stream = next(a for a in given if isinstance(a, Tensor) and a.is_floating_point())
            entered.append(stream.dtype)
            if self.dtype is not None:
                running.enter_context(_ordinary_weights(block, f"{self.stack}.{layer}", self.dtype, stream.shape[-1]))
            args = tuple(_cast(_plain(a) if _is_like(a, stream) else a, self.dtype) for a in args)
            streams = {n for n in ("hidden_states", "encoder_hidden_states") if _is_like(kwargs.get(n), stream)}
            return args, {n: _cast(_plain(a) if n in streams else a, self.dtype) for n, a in kwargs.items()}

        def after(module: nn.Module, args: tuple, output: Any) -> Any:
            if layer not in self.read_off:
                self.paused = True
                try:
                    self.read_off[layer] = self.read(
                        layer, Trace(f"{self.stack}.{layer}", self.tensors, _first(output))
                    )
                finally:
                    self.paused = False
            running.close()
            return _cast(output, entered.pop())

        stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(after).remove)


@contextmanager
def _ordinary_weights(block: nn.Module, name: str, dtype: torch.dtype, width: int) -> Iterator[None]:
    """The block on a copy of its weights in this dtype, of ordinary size; norms with gains and biases of their own."""
    copies: dict[int, nn.Parameter] = {}
    with ExitStack() as stack:
        for path, module in block.named_modules():
            own = [(n, p) for n, p in module.named_parameters(recurse=False) if p.is_floating_point() and not p.is_meta]
            if any(p.ndim > 2 for _, p in own) and "conv" not in type(module).__name__.lower():
                _check_finite(own, f"{name}.{path}")
                stack.enter_context(_cast_at_its_edge(module, own[0][1].dtype, dtype))
                continue
            norm = "norm" in type(module).__name__.lower()
            for parameter_name, parameter in own:
                if id(parameter) not in copies:
                    _check_finite([(parameter_name, parameter)], f"{name}.{path}")
                    values = _ordinary(parameter.detach().to(dtype), norm, width, phase=len(copies))
                    copies[id(parameter)] = nn.Parameter(values, requires_grad=False)
                nn.Module.register_parameter(module, parameter_name, copies[id(parameter)])
                stack.callback(nn.Module.register_parameter, module, parameter_name, parameter)
        yield


def _check_finite(parameters: list[tuple[str, nn.Parameter]], path: str) -> None:
    for name, parameter in parameters:
        if not bool(torch.isfinite(parameter.detach().sum(dtype=torch.float32))):  # overflow?
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(
                    f"{path.removesuffix('.')}.{name} holds NaN or infinity, so no activation of this model means "
                    f"anything: load its weights again, or in float32."
                )


def _ordinary(values: Tensor, norm: bool, width: int, phase: int) -> Tensor:
    if norm and values.ndim == 1:
        return 1 + 0.25 * _waves(values, phase)
    if values.ndim < 2:
        return values
    usual = width**-0.5
    typical = float(values.square().mean().sqrt())
    if typical == 0:
        return usual * _waves(values, phase)
    return values if usual / _ORDINARY < typical < usual * _ORDINARY else values * (usual / typical)


def _waves(like: Tensor, phase: float) -> Tensor:
    """Fixed numbers between -1 and 1 that look random."""
    k = torch.arange(like.numel(), dtype=torch.float32, device=like.device)
    return torch.sin((0.7123 + 0.0137 * phase) * k * k + phase).reshape(like.shape).to(like.dtype)


@contextmanager
def _cast_at_its_edge(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> Iterator[None]:
    """Stacked experts, too large to copy, compute in their own dtype; only what they write is added to anything."""
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: (_cast(args, inside), {n: _cast(a, inside) for n, a in kwargs.items()}),
            with_kwargs=True,
        ),
        module.register_forward_hook(lambda module, args, output: _cast(output, outside)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_like(value: object, stream: Tensor) -> bool:
    """A stream: that of the block, or that of the encoder."""
    return _is_float(value) and value.ndim == stream.ndim and value.shape[-1] == stream.shape[-1]


def _plain(stream: Tensor) -> Tensor:
    """A stream of size one in place of the real one; its mean is not zero, so that centring shows."""
    return 0.4 + _waves(stream, phase=stream.shape[1])


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors, alone or in tuples and lists, in this dtype; None: as they are."""
    if _is_float(value) and dtype is not None:
        return value.to(dtype)
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    return value


def _first(output: Any) -> Tensor | None:
    """The stream that a block returns."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if _is_float(output) else None
