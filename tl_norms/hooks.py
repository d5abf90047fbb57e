"""The same numbers during the forward pass: callbacks on hook points, one block at a time.

A cache of all layers does not fit for long inputs. A recorder listens at the hook points that the scopes need; when a
block has run, its norms are computed, its activations let go, and only what was asked for is kept. Numbers are those of
a cache of the same run, made by the same code.

What an operation costs to start is most of what a short text costs: there, copies of a few blocks' activations wait
until blocks of one shape are taken at once, at the latest when the last one has run or something is asked for.

Memory: the activations of one block, or up to `pieces.held` bytes of several, whatever the number of layers, plus what
is kept.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .blocks.activations import Activations
from .blocks.compat import attach, detach
from .blocks.masks import pass_masks
from .blocks.structure import Block
from .errors import RecorderError, TLNormsError
from .joined_layers import numbers_of_layers, worth_holding
from .labels import id_hook
from .layer_numbers import LayerNumbers, collected, layer_numbers
from .linear.pieces import pieces
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
            `recorder.kept[layer]`, and nothing else. It is called layer by layer; on short texts for some layers one
            after the other, when the last of them has run
        maps: False if the function needs no maps, which are then not computed

    Raises:
        RecorderError: a second run through the same recorder, or results asked for before a run is complete.
        Otherwise as `block_norms`, from inside the forward pass (of blocks that wait: when they are taken, at the end
        of the pass or of the `with` block, or where results are asked for).

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
        self._held: list[Block] = []
        self._held_bytes = 0
        self._kept: dict[int, Any] = {}

    @property
    def kept(self) -> dict[int, Any]:
        """What the function returned, by layer, of all blocks that have run."""
        self._take()
        return self._kept

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
        self._take()
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
            return
        try:
            self._take()
        except BaseException:
            self.reset()
            raise

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
        if block.layer in self._layers or block.layer in self._kept or name in heard:
            raise RecorderError(
                f"{name} fired a second time: this recorder holds a run already, and two runs cannot be mixed. Call "
                f"recorder.reset() between runs. (A model that runs its blocks several times per forward cannot be "
                f"recorded; analyse its cache, which holds the last pass.)"
            )
        heard[name] = tensor.detach()
        if len(heard) == len(self._needed[block.layer]):
            self._ran(block)

    def _ran(self, block: Block) -> None:
        """All activations of a block are here: compute, or hold them until others like it are here."""
        heard, waits = self._tensors[block.layer], self.maps and len(self.plan.blocks) > 1
        if not (waits and worth_holding(self.plan, heard, self._numbers[block.layer])):
            self._take()  # so that layers come in their order
            self._finish([block])
            return
        for name, tensor in heard.items():  # copies: the model, or a hook, may go on in the same memory
            heard[name] = tensor.clone()
            self._held_bytes += tensor.numel() * tensor.element_size()
        self._held.append(block)
        done = len(self._held) + len(self._layers) + len(self._kept)
        if done == len(self.plan.blocks) or self._held_bytes >= pieces(tensor.device).held:
            self._take()

    def _take(self) -> None:
        """Compute what waits."""
        held, self._held, self._held_bytes = self._held, [], 0
        if held:
            self._finish(held)

    @torch.no_grad()
    def _finish(self, blocks: list[Block]) -> None:
        """All activations of these blocks are here: compute, keep what was asked, let them go."""
        tensors = {name: one for block in blocks for name, one in self._tensors[block.layer].items()}
        activations = self.plan.activations(tensors, True)
        numbers = [self._numbers[block.layer] for block in blocks]
        try:
            if self.maps:
                layers = numbers_of_layers(self.plan, activations, numbers, afresh=True)
            else:
                layers = [layer_numbers(self.plan, activations, number, maps=False) for number in numbers]
        except TLNormsError:
            if len(blocks) == 1:
                raise
            for block in blocks:  # what comes before the one that is wrong is kept
                self._finish([block])
            return
        for block in blocks:
            self._tensors[block.layer] = {}
        self._activations = activations.emptied(self._ids)
        if callable(self.keep):
            for layer in layers:
                self._kept[layer.layer] = self.keep(collected(self.plan, [layer], activations))
            return
        whole = collected(self.plan, layers, activations)
        ratios, weights = whole.attention_mixing_ratio(), whole.attention if self.keep == "maps" else None
        for row, layer in enumerate(layers):
            self._attention_ratio[layer.layer] = ratios[row]
            if weights is not None:
                self._attention[layer.layer] = weights[row]
            self._layers[layer.layer] = layer.without_pattern()


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
