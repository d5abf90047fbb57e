"""What is to be computed of which model: the reader, the blocks and the scopes of one analysis."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .blocks import processing
from .blocks.activations import Activations, check_cache
from .blocks.bridge import BridgeReader
from .blocks.hooked import HookedReader
from .blocks.structure import Block, Reader
from .errors import MaskError, UnknownLayerError, UnsupportedArchitectureError
from .names import is_post_norm, resolve_scope
from .options import Layers, Options, Scopes, layer_numbers, scope_names

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
        options: all else
    """

    reader: Reader
    blocks: tuple[Block, ...]
    scopes: tuple[str, ...]
    chain: tuple[str, ...]
    skipped: tuple[int, ...]
    processing: tuple[str, ...]
    options: Options

    @classmethod
    def of(cls, model: nn.Module, scopes: Scopes = None, **options: Any) -> "Plan":
        """Read the model; warn once if its weights were processed."""
        checked = Options.of(**options)
        reader = reader_of(model, checked.stack)
        chain = chain_of(reader)
        chosen = chosen_scopes(scopes, chain)
        blocks, skipped = chosen_blocks(reader, checked.layers)
        if checked.source_mask is not None and all(block.cross() is None for block in blocks):
            raise MaskError(
                f"source_mask is for a decoder with cross-attention; {type(model).__name__} has none in these layers. "
                f"Pass mask= for the positions of the model itself."
            )
        layers = tuple(block.layer for block in blocks)
        found = reader.decided(("processing", layers), lambda: processing.detect(reader, blocks))
        processing.warn_once(model, found)
        return cls(reader, tuple(blocks), chosen, chain, skipped, found, checked)

    @classmethod
    def of_cache(cls, cache: Any, scopes: Scopes = None, **options: Any) -> tuple["Plan", Activations]:
        """The plan for the model of a cache, and the cache's activations."""
        check_cache(cache)
        plan = cls.of(cache.model, scopes, **options)
        return plan, plan.activations(cache.cache_dict, cache.has_batch_dim)

    def activations(self, tensors: Mapping[str, Tensor], has_batch: bool) -> Activations:
        """Tensors by hook name, read for this analysis."""
        return Activations(tensors, has_batch, self.reader, self.options.mask, self.options.source_mask)


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
        if stack is not None:
            raise UnsupportedArchitectureError(
                f"{type(model).__name__} has no stack {stack!r} of blocks; it has only one: leave stack out."
            )
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
    """All scopes of a model."""
    blocks = [block for block in reader.blocks() if block is not None]
    if not blocks:
        raise UnsupportedArchitectureError(
            f"{type(reader.model).__name__} has no layer with attention, so there are no sources to tell apart."
        )
    return blocks[0].scopes


def chosen_scopes(scopes: Scopes, chain: tuple[str, ...]) -> tuple[str, ...]:
    """Scopes asked for, in the order of the chain."""
    scopes = scope_names(scopes)
    if scopes is None:
        scopes = tuple(scope for scope in chain if "ff" not in scope.split("_"))
        if not is_post_norm(chain):  # the norm after the residual is the feed-forward's
            scopes = tuple(scope for scope in scopes if not scope.endswith("_res_ln"))
    elif isinstance(scopes, str):
        scopes = chain if scopes == "all" else (scopes,)
    wanted = {resolve_scope(scope, chain) for scope in scopes}
    return tuple(scope for scope in chain if scope in wanted)


def chosen_blocks(reader: Reader, layers: Layers) -> tuple[list[Block], tuple[int, ...]]:
    """The blocks asked for, and the layers that have no attention."""
    blocks = reader.blocks()
    skipped = tuple(number for number, block in enumerate(blocks) if block is None)
    numbers = layer_numbers(layers)
    if numbers is None:
        return [block for block in blocks if block is not None], skipped
    chosen: dict[int, Block] = {}
    for layer in numbers:
        if not -len(blocks) <= layer < len(blocks):
            raise UnknownLayerError(f"there is no layer {layer}: this model has layers 0 to {len(blocks) - 1}.")
        block = blocks[layer]
        if block is None:
            raise UnknownLayerError(f"layer {layer} has no attention; these layers have none: {skipped}.")
        if block.layer in chosen:
            raise UnknownLayerError(f"layers names layer {block.layer} more than once: {list(numbers)}.")
        chosen[block.layer] = block
    return list(chosen.values()), ()
