"""Alignment error rate against rates computed by hand."""

import math

import pytest

from tl_norms.alignment import AlignmentInputError, GoldLinks, alignment_error_rate, read_pharaoh

#   sentence   predicted A      sure S       possible P (S among them)   |A|  |S|  |A∩S|  |A∩P|
#   0          0-0 1-1 2-3      0-0 1-2      0-0 1-2 2-1 2-3              3    2     1      2    AER 1 - 3/5 = 0.4
#   1          (none)           0-0          0-0                          0    1     0      0    AER 1 - 0/1 = 1
#   2          0-1              (none)       0-0 0-1                      1    0     0      1    AER 1 - 1/1 = 0
#   all                                                                   4    3     1      3    AER 1 - 4/7 = 3/7
PREDICTED = [{(0, 0), (1, 1), (2, 3)}, set(), {(0, 1)}]
GOLD = ["0-0 1-2 2p1 2p3", "0-0", "0p0 0p1"]


def test_by_hand():
    gold = read_pharaoh(GOLD)
    found = alignment_error_rate(PREDICTED, [g.sure for g in gold], [g.possible - g.sure for g in gold])
    assert found.aer == pytest.approx(3 / 7)  # not the mean of 0.4, 1 and 0
    assert found.precision == pytest.approx(3 / 4) and found.recall == pytest.approx(1 / 3)
    assert (found.n_predicted, found.n_sure, found.n_predicted_sure, found.n_predicted_possible) == (4, 3, 1, 3)
    assert found == alignment_error_rate(PREDICTED, gold)
    assert found.n_sentences == 3 and "aer=0.4286" in repr(found)


def test_sure_links_alone():
    # |A| = 2, |S| = 3, |A∩S| = |A∩P| = 1: 1 - 2/5
    found = alignment_error_rate([{(0, 0), (1, 1)}], [{(0, 0), (2, 2), (1, 2)}])
    assert found.aer == pytest.approx(0.6) and found.precision == 0.5 and found.recall == pytest.approx(1 / 3)


def test_direction_matters():
    assert alignment_error_rate([{(0, 1)}], [{(1, 0)}], [()]).aer == 1


def test_nothing_to_count():
    nothing = alignment_error_rate([set()], [set()], [{(0, 0)}])
    assert math.isnan(nothing.aer) and math.isnan(nothing.precision) and math.isnan(nothing.recall)
    assert math.isnan(alignment_error_rate([], [], []).aer)
    silent = alignment_error_rate([set()], [{(0, 0)}], [set()])
    assert silent.aer == 1 and math.isnan(silent.precision) and silent.recall == 0
    unsure = alignment_error_rate([{(0, 0), (1, 1)}], [set()], [{(0, 0)}])
    assert unsure.aer == 0.5 and unsure.precision == 0.5 and math.isnan(unsure.recall)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([set()], [set(), set()], [set(), set()]), "predictions for 1 sentences and gold links for 2"),
        (([set()], [set()], []), "sure links of 1 sentences and possible links of 0"),
        (([{(0, 0)}], [GoldLinks({(0, 0)})], [set()]), "leave `possible` out"),
        (({(0, 0), (1, 1)}, [set(), set()], [set(), set()]), "links of sentence 0 .predicted"),  # one set, not a list
        (([{(0, 0, 0)}], [set()], [set()]), "expected a set of"),
        (([{(0.5, 0)}], [set()], [set()]), "expected a set of"),
        (([{(-1, 0)}], [set()], [set()]), "expected a set of"),
        (([{(0, 0)}], ["0-0"], [set()]), "sentence 0 .sure"),
        (([None], [set()], [set()]), "expected a set of"),
    ],
)
def test_bad_input(arguments, said):
    with pytest.raises(AlignmentInputError, match=said):
        alignment_error_rate(*arguments)
