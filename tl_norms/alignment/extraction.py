"""From cross-attention maps to links between words, as Kobayashi et al. 2020 take them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from .errors import AlignmentInputError
from .links import Links
from .merging import merge_words
from .pairs import EncodedPair

Setting = Literal["AWO", "AWI"]
"""Which decoder step stands for a target piece: the one that predicts it (AWO, "alignment with output"), or the one
that reads it (AWI, "alignment with input")."""
Method = Literal["weight", "norm"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
METHODS: tuple[Method, ...] = get_args(Method)


class CrossMaps(Protocol):
    """What links are taken from: the result of `cross_norms`, or anything with these maps.

    Attributes:
        layers: layer numbers
        attention: alpha, [layer batch head query key]
        head_norms: |alpha f(x)|, [layer batch head query key]
        norms: |sum_h alpha f(x)|, [layer batch query key]; all three without batch for a single pair
    """

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def attention(self) -> Tensor: ...
    @property
    def head_norms(self) -> Tensor: ...
    @property
    def norms(self) -> Tensor: ...


@dataclass(frozen=True, repr=False, eq=False)
class WordAlignments:
    """The source word of each target word of some sentence pairs, by each layer, head and method.

    Attributes:
        settings: of "AWO", "AWI"
        layers: layer numbers
        n_heads: heads of each layer
        choices: setting -> for each sentence pair the number of the source word, or -1 for none,
            [method layer 1+head target_word]; methods are ("weight", "norm"), and before the heads comes the layer
            as a whole
    """

    settings: tuple[Setting, ...]
    layers: tuple[int, ...]
    n_heads: int
    choices: dict[Setting, list[np.ndarray]]

    def links(self, setting: Setting, method: Method, layer: int, head: int | None = None) -> list[Links]:
        """For each sentence pair its links (source word, target word), at most one per target word.

        Args:
            setting: "AWO" or "AWI"
            method: "weight" or "norm"
            layer: a layer number, from the end if negative
            head: None for the layer as a whole: the mean of the heads' weights, the norm of the heads' sum

        Raises:
            AlignmentInputError: nothing of that name or number is here.

        Example:
            >>> align(model, pairs).links("AWI", "norm", layer=1)               # doctest: +SKIP
        """
        if setting not in self.choices or method not in METHODS:
            raise AlignmentInputError(
                f"there are no links of setting {setting!r} and method {method!r}; expected a setting of "
                f"{', '.join(self.settings)} and a method of {', '.join(METHODS)}."
            )
        numbers = range(max(self.layers, default=-1) + 1)
        found = layer + len(numbers) if layer < 0 else layer
        if found not in self.layers or not (head is None or -self.n_heads <= head < self.n_heads):
            raise AlignmentInputError(
                f"there are no links of layer {layer}, head {head}; expected a layer of {list(self.layers)} and one of "
                f"{self.n_heads} heads, or None."
            )
        at = METHODS.index(method), self.layers.index(found), 0 if head is None else head % self.n_heads + 1
        return [links_of(choices[at]) for choices in self.choices[setting]]

    def __len__(self) -> int:
        """The number of sentence pairs."""
        return len(next(iter(self.choices.values()), ()))

    def __repr__(self) -> str:
        return (
            f"WordAlignments({len(self)} sentence pairs, settings {', '.join(self.settings)}, "
            f"{len(self.layers)} layers of {self.n_heads} heads)"
        )


def extract(
    maps: CrossMaps,
    pairs: Sequence[EncodedPair],
    *,
    settings: Sequence[Setting] = SETTINGS,
    end_of_sentence: bool = True,
) -> WordAlignments:
    """Word alignments from cross-attention: for each target word the source word of greatest weight or norm.

    Decoder positions are the start token and the target's tokens, position 0 being the start. Piece t belongs to the
    position that predicts it, t (AWO), or to the one that reads it, t + 1 (AWI). Pieces become words by `merge_words`;
    then argmax_j alpha_ij or argmax_j |alpha_ij f(x_j)| (Kobayashi et al. 2020, equation 5). Of equal ones the first.

    Args:
        maps: of teacher-forced pairs, one a row of the batch, padding on the right; see `teacher_forced`, `CrossMaps`
        pairs: the tokens of each row
        settings: "AWO", "AWI" or both
        end_of_sentence: True lets the source's special tokens (the end of sentence) compete, as in the paper: a target
            word that chooses one has no link. False chooses among words only.

    Returns:
        WordAlignments, with `.links("AWI", "norm", layer)` for each layer and head.

    Raises:
        AlignmentInputError: the maps are too small for the pairs, or an unknown setting.
    """
    settings = checked_settings(settings)
    weights, norms = _stacked(maps)
    if weights.shape[1] != len(pairs):
        raise AlignmentInputError(f"the maps are of {weights.shape[1]} sentence pairs, but {len(pairs)} were given.")
    choices: dict[Setting, list[np.ndarray]] = {setting: [] for setting in settings}
    for row, pair in enumerate(pairs):
        n_target, n_source = len(pair.target), len(pair.source)
        if weights.shape[-2] < n_target or weights.shape[-1] < n_source:
            raise AlignmentInputError(
                f"the maps are of {weights.shape[-2]} target and {weights.shape[-1]} source positions; pair {row} "
                f"needs {n_target} and {n_source}."
            )
        both = torch.stack([weights[:, row, ..., :n_source], norms[:, row, ..., :n_source]])
        for setting in settings:
            choices[setting].append(choose(both, pair, setting, end_of_sentence))
    return WordAlignments(settings, tuple(maps.layers), weights.shape[2] - 1, choices)


def choose(maps: Tensor, pair: EncodedPair, setting: Setting, end_of_sentence: bool = True) -> np.ndarray:
    """The source word of each target word, -1 for none, from maps of one pair [*leading query key]: [*leading word]."""
    merged = word_maps(maps, pair, setting)
    known = set(pair.source_words)
    silent = [word for word in range(pair.n_source or 0) if word not in known]  # no piece of its own: never chosen
    merged[..., silent] = -torch.inf
    if not end_of_sentence:
        merged = merged[..., : pair.n_source]
    found = merged.argmax(-1).cpu().numpy()
    found[found >= pair.n_source] = -1
    found[..., [word for word in range(pair.n_target or 0) if word not in set(pair.target_words)]] = -1
    return found


def word_maps(maps: Tensor, pair: EncodedPair, setting: Setting) -> Tensor:
    """Maps between words from cross-attention maps of one pair: the setting's steps, pieces merged by `merge_words`.

    Args:
        maps: [*leading query key], attention weights or vector norms of one teacher-forced pair
        pair: its tokens, see `encode_pair`
        setting: "AWO" or "AWI"

    Returns:
        [*leading target_word source_group]: the source's words, then each of its special tokens by itself.

    Raises:
        AlignmentInputError: the maps are too small for the pair.

    Example:
        >>> word_maps(tl_norms.cross_norms(cache).norms[2, 0], pair, "AWO")     # doctest: +SKIP
    """
    rows = steps(maps, pair, setting)
    merged = merge_words(rows, pair.source_words, pair.target_words, n_source=pair.n_source, n_target=pair.n_target)
    return merged[..., : pair.n_target, :]


def steps(maps: Tensor, pair: EncodedPair, setting: Setting) -> Tensor:
    """The decoder steps of the target's tokens: rows 0..T-1 that predict them (AWO), or 1..T that read them (AWI).

    The last token need not have been read if it is special, as the end of sentence is: its row is 0 then.
    """
    n = len(pair.target)
    if setting == "AWO":
        return maps[..., :n, :]
    found = maps[..., 1 : n + 1, :]
    if found.shape[-2] == n:
        return found
    if found.shape[-2] < n - 1 or pair.target_words[-1] is not None:
        raise AlignmentInputError(
            f"the maps are of {maps.shape[-2]} decoder positions, so the last of {n} target tokens was not read; AWI "
            f"needs its step: run the decoder on the start token and all target tokens but a final special one."
        )
    return torch.cat([found, torch.zeros_like(maps[..., :1, :])], -2)


def links_of(choices: np.ndarray) -> Links:
    """Links (source word, target word) of the source word of each target word, -1 for none."""
    return frozenset((int(source), target) for target, source in enumerate(choices.tolist()) if source >= 0)


def checked_settings(settings: Sequence[Setting] | Setting) -> tuple[Setting, ...]:
    """Settings as a tuple, each once.

    Raises:
        AlignmentInputError: none, or an unknown one.
    """
    given = (settings,) if isinstance(settings, str) or not isinstance(settings, Iterable) else tuple(settings)
    if not given or any(setting not in SETTINGS for setting in given):
        raise AlignmentInputError(f"settings are {given}; expected 'AWO', 'AWI' or both.")
    return tuple(dict.fromkeys(given))


def _stacked(maps: CrossMaps) -> tuple[Tensor, Tensor]:
    """Weights and norms, both [layer batch 1+head query key], the layer as a whole before its heads."""
    weights, head_norms, norms = maps.attention, maps.head_norms, maps.norms
    if weights.ndim == 4:  # a single pair
        weights, head_norms, norms = weights[:, None], head_norms[:, None], norms[:, None]
    if weights.ndim != 5 or head_norms.shape != weights.shape or norms.shape != weights[:, :, 0].shape:
        raise AlignmentInputError(
            f"attention is {list(weights.shape)}, head_norms {list(head_norms.shape)} and norms {list(norms.shape)}; "
            f"expected [layer batch head query key] twice and [layer batch query key]."
        )
    mean = weights.to(torch.promote_types(weights.dtype, torch.float32)).mean(2, keepdim=True)
    return torch.cat([mean, weights.to(mean)], 2), torch.cat([norms[:, :, None], head_norms], 2).to(mean)
