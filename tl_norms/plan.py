"""What is to be computed of which model: the reader, the blocks and the scopes of one analysis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from .blocks import processing
from .blocks.bridge import BridgeReader
from .blocks.hooked import HookedReader
from .blocks.structure import Block, Reader
from .errors import UnknownLayerError, UnknownOptionError, UnsupportedArchitectureError
from .linear.steps import Bias
from .names import is_post_norm, resolve_scope

Scopes = str | Sequence[str] | None
Layers = int | Iterable[int] | None

_STACKS = ("blocks", "decoder_blocks", "encoder_blocks", "H_blocks", "L_blocks")


@dataclass(frozen=True)
class Plan:
    """One analysis, before any activation is seen.

    Attributes:
        reader: the model, read
        blocks: the layers to analyse
        scopes: what to compute, in the order of the chain
        chain: all scopes of the model
        skipped: layers without attention
        processing: weight processing seen in the tensors
        bias, max_memory, sketch, check: as for `block_norms`
    """

    reader: Reader
    blocks: tuple[Block, ...]
    scopes: tuple[str, ...]
    chain: tuple[str, ...]
    skipped: tuple[int, ...]
    processing: tuple[str, ...]
    bias: Bias = "player"
    max_memory: int | None = None
    sketch: int | None = None
    check: bool = True

    @classmethod
    def of(cls, model: nn.Module, scopes: Scopes, layers: Layers, stack: str | None, **options) -> "Plan":
        """Read the model; warn once if its weights were processed."""
        if options.get("bias", "player") not in ("player", "fixed"):
            raise UnknownOptionError(f"bias is {options['bias']!r}; expected 'player' or 'fixed'.")
        if (options.get("sketch") or 1) < 1:
            raise UnknownOptionError(f"sketch is {options['sketch']}; expected a number of directions, at least 1.")
        reader = reader_of(model, stack)
        blocks, skipped = chosen_blocks(reader, layers)
        chain = chain_of(reader)
        found = processing.detect(reader, blocks)
        processing.warn_once(model, found)
        return cls(reader, tuple(blocks), chosen_scopes(scopes, chain), chain, skipped, found, **options)


def reader_of(model: nn.Module, stack: str | None = None) -> Reader:
    """The reader for this kind of model, and for one of its stacks of blocks."""
    if hasattr(model, "original_model") and hasattr(model, "adapter"):
        stacks = [name for name in _STACKS if hasattr(model, name)]
        chosen = f"{stack}_blocks" if stack else next(iter(stacks), "blocks")
        if chosen not in stacks:
            names = [repr(name.removesuffix("_blocks")) for name in stacks if name != "blocks"]
            raise UnsupportedArchitectureError(
                f"{type(model.original_model).__name__} has no stack {stack!r} of blocks; "
                f"it has {', '.join(names) or 'only one: leave stack out'}."
            )
        return BridgeReader(model, chosen)
    if hasattr(model, "blocks") and hasattr(model, "cfg"):
        return HookedReader(model)
    if hasattr(model, "encoder") and hasattr(model, "decoder") and hasattr(model, "cfg"):
        if stack not in (None, "encoder", "decoder"):
            raise UnsupportedArchitectureError(
                f"{type(model).__name__} has no stack {stack!r}; it has 'decoder' and 'encoder'."
            )
        return HookedReader(model, stack or "decoder")
    raise UnsupportedArchitectureError(
        f"expected a TransformerBridge, HookedTransformer, HookedEncoder or HookedEncoderDecoder, "
        f"got {type(model).__name__}. "
        f"Boot it: TransformerBridge.boot_transformers(name)."
    )


def chain_of(reader: Reader) -> tuple[str, ...]:
    blocks = [block for block in reader.blocks() if block is not None]
    if not blocks:
        raise UnsupportedArchitectureError(
            f"{type(reader.model).__name__} has no layer with attention, so there are no sources to tell apart."
        )
    return blocks[0].scopes


def chosen_scopes(scopes: Scopes, chain: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes asked for, in the order of the chain."""
    if scopes is None:
        scopes = [scope for scope in chain if "ff" not in scope.split("_")]
        if not is_post_norm(chain):  # the norm behind the residual is the feed-forward's
            scopes = [scope for scope in scopes if not scope.endswith("_res_ln")]
    elif isinstance(scopes, str):
        scopes = chain if scopes == "all" else [scopes]
    wanted = {resolve_scope(scope, chain) for scope in scopes}
    return tuple(scope for scope in chain if scope in wanted)


def chosen_blocks(reader: Reader, layers: Layers) -> tuple[list[Block], tuple[int, ...]]:
    """The blocks asked for, and the layers that have no attention."""
    blocks = reader.blocks()
    skipped = tuple(number for number, block in enumerate(blocks) if block is None)
    if layers is None:
        return [block for block in blocks if block is not None], skipped
    chosen = []
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -len(blocks) <= layer < len(blocks):
            raise UnknownLayerError(f"there is no layer {layer}: this model has layers 0 to {len(blocks) - 1}.")
        block = blocks[layer]
        if block is None:
            raise UnknownLayerError(f"layer {layer} has no attention; these layers have none: {skipped}.")
        chosen.append(block)
    return chosen, ()
