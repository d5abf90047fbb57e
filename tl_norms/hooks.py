"""The same numbers during the forward pass: callbacks on hook points, one block at a time.

A cache of all layers does not fit for long inputs. A recorder listens at the hook points that the scopes need; when a
block has run, its norms are computed, its activations let go, and only what was asked for is kept. Numbers are those of
a cache of the same run, made by the same code.

Memory: the activations of one block, whatever the number of layers, plus what is kept.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .blocks.activations import Activations
from .blocks.compat import attach, detach
from .blocks.masks import pass_masks
from .blocks.structure import Block
from .errors import RecorderError
from .joined_layers import numbers_of_layers
from .labels import id_hook
from .layer_numbers import LayerNumbers, collected, layer_numbers
from .options import AnalysisOptions, Layers, Scopes
from .plan import Plan
from .results import BlockNorms

Keep = Literal["maps", "mixing_ratio"] | Callable[[BlockNorms], Any]


class NormRecorder:
    """Computes block norms while the model runs.

    Use it in one of three ways:

        model.run_with_hooks(tokens, fwd_hooks=[*your_hooks, *recorder.fwd_hooks])
        with recorder: model(tokens)
        logits, norms = run_with_norms(model, tokens)

    As a context manager it sees every activation after all other hooks have changed it, so that the norms are those of
    a patched run; as `fwd_hooks`, put it last. It records one run; `reset()` makes it ready for another.

    Args:
        model: a TransformerBridge, HookedTransformer or HookedEncoder
        scopes, layers, **options: as for `block_norms`
        keep: "maps" keeps what `block_norms` returns, except the attention patterns (Attn-W stays);
            "mixing_ratio" computes no maps at all; a function of one layer's BlockNorms keeps what it returns, in
            `recorder.kept[layer]`, and nothing else
        maps: False if the function needs no maps, which are then not computed

    Raises:
        RecorderError: a second run through the same recorder, or results asked for before a run is complete.
        Otherwise as `block_norms`, from inside the forward pass.

    Example:
        >>> recorder = tl_norms.NormRecorder(model, keep="mixing_ratio")        # doctest: +SKIP
        >>> with recorder:                                                      # doctest: +SKIP
        ...     model(tokens)
        >>> recorder.norms.mixing_ratio("attn_res")                             # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        scopes: Scopes = None,
        layers: Layers = None,
        *,
        keep: Keep = "maps",
        maps: bool = True,
        **options: Any,
    ):
        if not callable(keep) and keep not in ("maps", "mixing_ratio"):
            raise RecorderError(
                f"keep is {keep!r}; expected 'maps', 'mixing_ratio' or a function of one layer's norms."
            )
        self.model, self.keep = model, keep
        self.maps = maps and keep != "mixing_ratio"
        self.plan = Plan.of(model, scopes, **{**options, "layers": layers})
        self._numbers = {block.layer: number for number, block in enumerate(self.plan.blocks)}
        self._needed = {block.layer: self._hooks(block) for block in self.plan.blocks}
        self._waiting: dict[str, list[Block]] = {}
        for block in self.plan.blocks:
            for name in self._needed[block.layer]:
                self._waiting.setdefault(name, []).append(block)
        self._handles: list[Any] = []
        self.reset()

    def _hooks(self, block: Block) -> tuple[str, ...]:
        return block.hooks(self.plan.scopes, edits=self.plan.options.edits != "refuse")

    def _id_hooks(self) -> tuple[str, ...]:
        """The hooks of token ids that this model has: of the stack analysed, and of the encoder."""
        names = dict.fromkeys(id_hook(self.model, stack) for stack in (self.plan.reader.stack, "encoder"))
        points: Any = getattr(self.model, "hook_dict", {})
        return tuple(name for name in names if name in points)

    def reset(self) -> None:
        """Forget the recorded run."""
        self._tensors: dict[int, dict[str, Tensor]] = {block.layer: {} for block in self.plan.blocks}
        self._layers: dict[int, LayerNumbers] = {}
        self._attention: dict[int, Tensor] = {}
        self._attention_ratio: dict[int, Tensor] = {}
        self._activations: Activations | None = None
        self._ids: dict[str, Tensor] = {}
        self.kept: dict[int, Any] = {}

    @property
    def fwd_hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """Pairs (hook name, function) for `model.run_with_hooks(tokens, fwd_hooks=...)`."""
        ids = self._id_hooks()
        return [(name, self._listener(name, name in ids)) for name in (*self._waiting, *ids)]

    @property
    def norms(self) -> BlockNorms:
        """The recorded run as one result; without maps if `keep="mixing_ratio"`."""
        if callable(self.keep):
            raise RecorderError("this recorder keeps what its function returned, in recorder.kept[layer].")
        missing = [block.layer for block in self.plan.blocks if block.layer not in self._layers]
        if missing or self._activations is None:
            names = [n for n, blocks in self._waiting.items() if any(b.layer in missing for b in blocks)]
            silent = [n for n in names if not any(n in self._tensors[b.layer] for b in self._waiting[n])]
            raise RecorderError(
                f"the run is not complete: layers {missing} have no norms yet"
                + (
                    f" (these hooks did not fire: {', '.join(silent[:3])})"
                    if len(missing) < len(self.plan.blocks)
                    else ""
                )
                + (
                    ". With set_use_attn_result(True) TransformerLens adds up the heads itself and never runs the "
                    "output projections that are waited for: call model.set_use_attn_result(False)"
                    if getattr(getattr(self.plan.reader.model, "cfg", None), "use_attn_result", False)
                    else ". Run the model inside `with recorder:` or with fwd_hooks=recorder.fwd_hooks first"
                )
                + "."
            )
        layers = [self._layers[block.layer] for block in self.plan.blocks]
        ratio = self._stacked(self._attention_ratio)
        attention = self._stacked(self._attention) if self._attention else None
        return collected(self.plan, layers, self._activations, attention, ratio)

    def _stacked(self, rows: dict[int, Tensor]) -> Tensor:
        first = next(iter(rows.values())).device
        return torch.stack([rows[block.layer].to(first) for block in self.plan.blocks])

    def __enter__(self) -> "NormRecorder":
        points: dict[str, Any] = dict(self.model.hook_dict.items())  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        try:
            for name, listener in self.fwd_hooks:
                self._handles.append(attach(points[name], listener))
        except BaseException:
            self._detach()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._detach()
        if exception[0] is not None:
            self.reset()

    def _detach(self) -> None:
        for attached in self._handles:
            detach(attached)
        self._handles.clear()

    def _listener(self, name: str, ids: bool) -> Callable[..., None]:
        def listen(tensor: Tensor, hook: Any) -> None:
            if ids:
                self._ids[name] = tensor.detach()
            for block in self._waiting.get(name, ()):
                self._hear(block, name, tensor)

        return listen

    def _hear(self, block: Block, name: str, tensor: Tensor) -> None:
        heard = self._tensors[block.layer]
        if block.layer in self._layers or block.layer in self.kept or name in heard:
            raise RecorderError(
                f"{name} fired a second time: this recorder holds a run already, and two runs cannot be mixed. Call "
                f"recorder.reset() between runs. (A model that runs its blocks several times per forward cannot be "
                f"recorded; analyse its cache, which holds the last pass.)"
            )
        heard[name] = tensor.detach()
        if len(heard) == len(self._needed[block.layer]):
            with torch.no_grad():
                self._finish(block)

    def _finish(self, block: Block) -> None:
        """All activations of a block are here: compute, keep what was asked, let them go."""
        activations = self.plan.activations(self._tensors[block.layer], True)
        number = self._numbers[block.layer]
        if self.maps:
            (numbers,) = numbers_of_layers(self.plan, activations, [number])
        else:
            numbers = layer_numbers(self.plan, activations, number, maps=False)
        whole = collected(self.plan, [numbers], activations)
        if callable(self.keep):
            self.kept[block.layer] = self.keep(whole)
        else:
            self._attention_ratio[block.layer] = whole.attention_mixing_ratio()[0]
            if self.keep == "maps":
                self._attention[block.layer] = whole.attention[0]
            self._layers[block.layer] = numbers.without_pattern()
        self._activations = activations.emptied(self._ids)
        self._tensors[block.layer] = {}


def run_with_norms(
    model: nn.Module,
    *model_args: Any,
    scopes: Scopes = None,
    **options_and_inputs: Any,
) -> tuple[Any, BlockNorms]:
    """Run the model and compute block norms on the way, without a cache, in the manner of `run_with_cache`.

    Args:
        model: the model
        *model_args: what the model is called with
        scopes: as for `block_norms`
        **options_and_inputs: options of `block_norms` by their names; all else goes to the model. Masks go to both,
            unless the model is given its own

    Returns:
        The model's output and the BlockNorms, equal to `block_norms` of a cache of the same run (its attention patterns
        are not kept, so `head_norms` is not available).

    Raises:
        As `block_norms`.

    Example:
        >>> logits, norms = tl_norms.run_with_norms(model, "A long text.", scopes=["attn_res"])  # doctest: +SKIP
    """
    inputs = dict(options_and_inputs)
    options = {name: inputs.pop(name) for name in AnalysisOptions.__annotations__ if name in inputs}
    recorder = NormRecorder(model, scopes, **options)
    chosen = recorder.plan.options
    decoder = recorder.plan.blocks[0].cross() is not None
    pass_masks(model, inputs, chosen.mask, chosen.source_mask, decoder)
    with recorder:
        output = model(*model_args, **inputs)
    return output, recorder.norms
