"""Links from maps, against choices made by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tl_norms import alignment
from tl_norms.alignment import AlignmentInputError, EncodedPair

# Two source words, of two pieces and one, and the end of sentence; two target words of two pieces and one, and the end.
PAIR = EncodedPair((5, 6, 7, 0), (8, 9, 4, 0), (0, 0, 1, None), (0, 0, 1, None))
# Rows: the decoder reads its start token and the three pieces, and predicts the three pieces and the end.
#                                     word 0   word 1   end
STEPS = torch.tensor(
    [
        [0.3, 0.3, 0.4, 0.0],  #        0.6      0.4    0.0   predicts piece 0
        [0.1, 0.1, 0.2, 0.6],  #        0.2      0.2    0.6   reads piece 0, predicts piece 1
        [0.0, 0.1, 0.8, 0.1],  #        0.1      0.8    0.1   reads piece 1, predicts piece 2
        [0.2, 0.0, 0.1, 0.7],  #        0.2      0.1    0.7   reads piece 2, predicts the end
    ],
    dtype=torch.float64,
)
# AWO: word 0 = mean of rows 0 and 1 = 0.4 0.3 0.3 -> 0      word 1 = row 2 -> 1
# AWI: word 0 = mean of rows 1 and 2 = 0.15 0.5 0.35 -> 1    word 1 = row 3 -> the end, or word 0 among words only
NARROW = torch.ones(1, 1, 1, 4, 3)
AWO, AWI, AWI_WORDS = {(0, 0), (1, 1)}, {(1, 0)}, {(1, 0), (0, 1)}


@dataclass
class Maps:
    layers: tuple[int, ...]
    attention: Tensor
    head_norms: Tensor
    norms: Tensor


def maps(steps: Tensor = STEPS, layers=(0, 3)) -> Maps:
    """Two layers of two heads; only layer 3 as a whole gives the links above by weights, and no head does by itself.

    The head's weights are off by opposite amounts, so that only their mean is right; the norm of the heads' sum is
    given, and is not what the heads' norms have to do with.
    """
    off = torch.zeros_like(steps)
    off[:, 2], off[:, 3] = 5, -5
    weights = torch.stack([steps + off, steps - off])
    uniform = torch.ones_like(weights)
    attention = torch.stack([uniform, weights])[:, None]
    backwards = steps[:, [2, 1, 0, 3]]
    norms = torch.stack([uniform[0], backwards])[:, None]
    heads = torch.stack([uniform, torch.stack([backwards, steps])])[:, None]
    return Maps(layers, attention, heads, norms)


def test_awo_and_awi():
    found = alignment.extract(maps(), [PAIR])
    assert found.links("AWO", "weight", 3) == [AWO]
    assert found.links("AWI", "weight", 3) == [AWI]
    words = alignment.extract(maps(), [PAIR], end_of_sentence=False)
    assert words.links("AWO", "weight", 3) == [AWO]
    assert words.links("AWI", "weight", 3) == [AWI_WORDS]


def test_heads_and_norms():
    found = alignment.extract(maps(), [PAIR])
    # head 0: column 2 (word 1) is 5 greater in every row, head 1: column 3 (the end) is
    assert found.links("AWI", "weight", 3, head=0) == [{(1, 0), (1, 1)}]
    assert found.links("AWI", "weight", 3, head=1) == [frozenset()]
    assert found.links("AWI", "norm", 3, head=1) == [AWI], "the second head's norms are the steps above"
    # norms of the sum have columns 0 and 2 exchanged: AWO word 0 = mean of 0.7 0.3 0.0 and 0.3 0.1 0.6 -> 0,
    # word 1 = 0.9 0.0 0.1 -> 0; AWI word 0 = mean of 0.3 0.1 0.6 and 0.9 0.0 0.1 -> 0, word 1 = 0.1 0.2 0.7 -> the end
    assert found.links("AWO", "norm", 3) == [{(0, 0), (0, 1)}]
    assert found.links("AWI", "norm", 3) == [{(0, 0)}]
    assert found.links("AWO", "norm", -1) == found.links("AWO", "norm", 3)
    assert len(found) == 1 and "1 sentence pairs, settings AWO, AWI, 2 layers of 2 heads" in repr(found)


def test_of_equal_ones_the_first():
    """Layer 0 is uniform: word 0 has two pieces, so it wins; with one piece each the first wins."""
    found = alignment.extract(maps(), [PAIR])
    assert found.links("AWO", "weight", 0) == [{(0, 0), (0, 1)}]
    flat = EncodedPair((5, 6), (8, 0), (0, 1), (0, None))
    one = Maps((0,), torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2))  # without a batch axis
    assert alignment.extract(one, [flat], settings="AWO").links("AWO", "norm", 0, -1) == [{(0, 0)}]


def test_padding_is_cut_off():
    """Rows and columns beyond a pair's own hold anything."""
    small, large = maps(), maps()
    for name in ("attention", "head_norms", "norms"):
        value = getattr(large, name)
        wide = torch.full((*value.shape[:-2], 6, 7), 99.0, dtype=value.dtype)
        wide[..., :4, :4] = value
        setattr(large, name, torch.cat([wide, torch.full_like(wide, torch.nan)], 1))
    found = alignment.extract(large, [PAIR, PAIR])
    for setting in ("AWO", "AWI"):
        wanted = alignment.extract(small, [PAIR]).choices[setting][0]
        assert (found.choices[setting][0] == wanted).all()


def test_a_word_without_a_piece_has_no_link():
    pair = EncodedPair(PAIR.source, PAIR.target, (1, 1, 3, None), (0, 0, 2, None), n_source=5, n_target=4)
    negative = maps(STEPS - 10)  # nothing must win because it is absent
    assert alignment.extract(negative, [pair], settings=["AWO"]).links("AWO", "weight", 3) != [frozenset()]
    found = alignment.extract(maps(), [pair], settings=["AWO"], end_of_sentence=False)
    assert found.links("AWO", "weight", 3) == [{(1, 0), (3, 2)}]
    assert {s for s, _ in alignment.extract(negative, [pair]).links("AWO", "weight", 3)[0]} <= {1, 3}


def test_the_last_token_must_have_been_read():
    """Without an end of sentence among the targets, AWI needs the step that reads the last piece."""
    bare = EncodedPair(PAIR.source, (8, 9, 4), PAIR.source_words, (0, 0, 1))
    assert alignment.extract(maps(), [bare]).links("AWI", "weight", 3) == [AWI]
    with pytest.raises(AlignmentInputError, match="3 decoder positions, so the last of 3 target tokens was not read"):
        alignment.extract(maps(STEPS[:3]), [bare], settings="AWI")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: alignment.extract(maps(), [PAIR], settings=[]), "expected 'AWO', 'AWI' or both"),
        (lambda: alignment.extract(maps(), [PAIR], settings="awo"), "expected 'AWO', 'AWI' or both"),
        (lambda: alignment.extract(maps(), [PAIR, PAIR]), "maps are of 1 sentence pairs, but 2 were given"),
        (
            lambda: alignment.extract(Maps((0,), NARROW, NARROW, NARROW[:, :, 0]), [PAIR]),
            "4 target and 3 source positions; pair 0 needs 4 and 4",
        ),
        (lambda: alignment.extract(maps(STEPS[:2]), [PAIR]), "2 target and 4 source positions"),
        (lambda: alignment.extract(Maps((0,), STEPS, STEPS, STEPS), [PAIR]), "expected .layer batch head query key."),
        (lambda: alignment.extract(maps(), [PAIR]).links("AWO", "weight", 1), "no links of layer 1"),
        (lambda: alignment.extract(maps(), [PAIR]).links("AWO", "weight", 3, 2), "one of 2 heads"),
        (lambda: alignment.extract(maps(), [PAIR], settings="AWO").links("AWI", "norm", 3), "setting of AWO"),
        (lambda: alignment.extract(maps(), [PAIR]).links("AWO", "value", 3), "method of weight, norm"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(AlignmentInputError, match=said):
        call()
