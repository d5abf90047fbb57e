"""What this package uses of TransformerLens that TransformerLens does not promise: the hooks kept by a hook point.

Everything private is here, and nowhere else; tests/test_compat.py runs it under every supported version.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Attached:
    """A listener at a hook point."""

    point: Any
    key: int  # of the listener among the point's forward hooks
    move: Any  # handle of what keeps it last


def attach(point: Any, listener: Callable[..., Any]) -> Attached:
    """Add a hook `listener(tensor, hook)` that fires after all others of its point, those added later included."""
    before = set(point._forward_hooks)
    point.add_hook(listener)
    (key,) = set(point._forward_hooks) - before
    move = point.register_forward_pre_hook(lambda module, _: module._forward_hooks.move_to_end(key))
    return Attached(point, key, move)


def detach(attached: Attached) -> None:
    """Remove such a hook, and nothing else."""
    attached.move.remove()
    handles = attached.point.fwd_hooks
    for handle in [handle for handle in handles if handle.hook.id == attached.key]:
        handle.hook.remove()
        handles.remove(handle)


@contextmanager
def listening(model: nn.Module, prefix: str, listener: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `listener(name, tensor)` for every activation of the hook points below a prefix, under all their names."""
    names: dict[int, list[str]] = {}
    points: dict[int, Any] = {}
    for name, point in dict(model.hook_dict.items()).items():  # one point under several names
        names.setdefault(id(point), []).append(name)
        points[id(point)] = point
    attached: list[Attached] = []

    def listen_as(aliases: list[str]) -> Callable[..., None]:
        def listen(tensor: Tensor, hook: object) -> None:
            for alias in aliases:
                listener(alias, tensor)

        return listen

    try:
        for key, point in points.items():
            if any(name.startswith(prefix) for name in names[key]):
                attached.append(attach(point, listen_as(names[key])))
        yield
    finally:
        for one in attached:
            detach(one)


_SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


@contextmanager
def without_switches(model: nn.Module) -> Iterator[None]:
    """Switches that reroute a bridge's activations through other hooks are off meanwhile."""
    on = [name for name in _SWITCHES if getattr(model.cfg, name, False) and hasattr(model, f"set_{name}")]
    try:
        for name in on:
            getattr(model, f"set_{name}")(False)
        yield
    finally:
        for name in on:
            getattr(model, f"set_{name}")(True)


@contextmanager
def without_user_hooks(model: nn.Module) -> Iterator[None]:
    """The user's own hooks neither fire nor change anything meanwhile; those the bridge is made of stay."""
    points = {id(point): point for point in model.hook_dict.values()}.values()
    saved = [(point, point._forward_hooks) for point in points]
    bridge = hasattr(model, "original_model")  # the classes of TransformerLens itself place no hooks of their own
    for point, hooks in saved:
        users = {handle.hook.id for handle in point.fwd_hooks if not (bridge and _is_internal(handle))}
        point._forward_hooks = OrderedDict((key, hook) for key, hook in hooks.items() if key not in users)
    try:
        yield
    finally:
        for point, hooks in saved:
            point._forward_hooks = hooks


def _is_internal(handle: Any) -> bool:
    """Whether the bridge itself placed a hook, to fire one hook point from another."""
    function = getattr(handle, "user_hook", None)
    return handle.is_permanent and (function is None or str(function.__module__).startswith("transformer_lens."))
