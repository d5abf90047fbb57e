"""Alignment files, read and written, and every way in which they can be wrong."""

import pytest

from tl_norms import TLNormsError, alignment
from tl_norms.alignment import AlignmentFormatError, AlignmentInputError, GoldLinks

# As in the files of Vilar et al. 2006: numbered from 1, `p` for possible links; here target-source, as some are.
TALP = ["1-1 2-3 2p4", "", "4-1 1p1"]
# As in the shared task of 2003: sentence, source, target, mark, confidence.
NAACL = ["0001 1 1 S", "1 2 3 S 0.9", "0001 2 4 P", "", "3 4 1", "3 1 1 P 1e-2"]
READ = [GoldLinks({(0, 0), (1, 2)}, {(1, 3)}), GoldLinks(frozenset()), GoldLinks({(3, 0)}, {(0, 0)})]


def test_pharaoh():
    assert alignment.read_pharaoh(TALP, one_based=True) == READ
    assert alignment.read_pharaoh(["0-0 1-2 1p3", "", "3-0 0p0"]) == READ
    assert READ[0].possible == {(0, 0), (1, 2), (1, 3)}, "sure links are possible"
    turned = alignment.read_pharaoh(TALP, one_based=True, reverse=True)
    assert turned[0] == GoldLinks({(0, 0), (2, 1)}, {(3, 1)}) and turned[2] == GoldLinks({(0, 3)}, {(0, 0)})


def test_naacl():
    assert alignment.read_naacl(NAACL) == READ
    assert alignment.read_naacl(NAACL, n_sentences=5) == [*READ, GoldLinks(frozenset()), GoldLinks(frozenset())]
    assert alignment.read_naacl(["1 3 1"], reverse=True) == [GoldLinks({(0, 2)})]
    assert alignment.read_naacl(["1 0 1", "1 1 1"], zero_is_null=True) == [GoldLinks({(0, 0)})]


def test_a_link_that_is_marked_twice_is_sure():
    assert alignment.read_naacl(["1 1 1 P", "1 1 1 S"]) == alignment.read_pharaoh(["0p0 0-0"]) == [GoldLinks({(0, 0)})]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_written_can_be_read(tmp_path, reverse):
    for one_based in (False, True):
        text = alignment.write_pharaoh(READ, tmp_path / "links", one_based=one_based, reverse=reverse)
        assert text == (tmp_path / "links").read_text()
        assert alignment.read_pharaoh(tmp_path / "links", one_based=one_based, reverse=reverse) == READ
        assert alignment.read_gold(tmp_path / "links", one_based=one_based, reverse=reverse) == READ
    alignment.write_naacl(READ, tmp_path / "links", reverse=reverse)
    assert alignment.read_naacl(tmp_path / "links", reverse=reverse) == READ
    assert alignment.read_gold(tmp_path / "links", reverse=reverse) == READ
    assert alignment.write_pharaoh([{(10, 0), (2, 1)}], reverse=True) == "1-2 0-10\n"


def test_the_format_is_told_by_content():
    assert alignment.read_gold(TALP, one_based=True) == READ
    assert alignment.read_gold(NAACL) == READ
    assert alignment.read_gold(["", "0-0"]) == [GoldLinks(frozenset()), GoldLinks({(0, 0)})]
    assert alignment.read_gold(["", ""]) == [GoldLinks(frozenset())] * 2
    with pytest.raises(AlignmentFormatError, match="line 2 of the alignment: '<s snum=1>' is neither Pharaoh"):
        alignment.read_gold(["", "<s snum=1>"])
    with pytest.raises(AlignmentInputError, match="unknown format 'talp'"):
        alignment.read_gold(TALP, format="talp")


@pytest.mark.parametrize(
    ("read", "lines", "said"),
    [
        (alignment.read_pharaoh, ["0-0", "0-0 1_2"], "line 2 of the alignment: '1_2' is no link"),
        (alignment.read_pharaoh, ["0--1"], "line 1 .*is no link; expected Pharaoh"),
        (alignment.read_pharaoh, ["1 1 1 S"], "line 1 .*is no link"),
        (alignment.read_naacl, ["1 1 1", "1 1"], "line 2 .*is no link; expected NAACL"),
        (alignment.read_naacl, ["1 1 1 X"], "line 1 .*is no link"),
        (alignment.read_naacl, ["1 1 1 S high"], "line 1 .*is no link"),
        (alignment.read_naacl, ["0 1 1"], "line 1 .*sentence 0"),
        (alignment.read_naacl, ["1 1 1", "", "1 0 1"], "line 3 .*word 0.*zero_is_null=True"),
    ],
)
def test_a_bad_line_is_named(read, lines, said):
    with pytest.raises(AlignmentFormatError, match=said):
        read(lines)


def test_numbering_from_one():
    with pytest.raises(AlignmentFormatError, match="line 2 .*'3-0' has word 0.*Leave one_based out"):
        alignment.read_pharaoh(["1-1", "3-0"], one_based=True)
    with pytest.raises(AlignmentFormatError, match=r"line 2 .*2-1 is out of range.*2 words.*one_based=True"):
        alignment.read_pharaoh(["1-1", "2-1"], lengths=[(2, 2), (2, 1)])


def test_links_out_of_range():
    lengths = [(2, 4), (1, 1), (4, 1)]
    assert alignment.read_pharaoh(TALP, one_based=True, lengths=lengths) == READ
    assert alignment.read_naacl(NAACL, lengths=lengths) == READ
    with pytest.raises(AlignmentFormatError, match="line 1 .*link 1-3 is out of range: the source has 2 .* target 3,"):
        alignment.read_pharaoh(TALP, one_based=True, lengths=[(2, 3), (1, 1), (4, 1)])
    with pytest.raises(AlignmentFormatError, match="line 5 .*link 3-0 is out of range"):
        alignment.read_naacl(NAACL, lengths=[(2, 4), (1, 1), (3, 1)])


def test_sentence_counts_that_differ():
    with pytest.raises(AlignmentInputError, match="has links of 3 sentence pairs, but there are 2"):
        alignment.read_pharaoh(TALP, one_based=True, lengths=[(4, 4)] * 2)
    with pytest.raises(AlignmentInputError, match="line 5 .*sentence 3, but there are 2"):
        alignment.read_naacl(NAACL, lengths=[(4, 4)] * 2)
    assert len(alignment.read_naacl(NAACL, lengths=[(4, 4)] * 4)) == 4, "a sentence without links has no line"


def test_files(tmp_path):
    with pytest.raises(AlignmentInputError, match="there is no file"):
        alignment.read_gold(tmp_path / "missing")
    (tmp_path / "latin").write_bytes(b"0-0\n\xe4\n")
    with pytest.raises(AlignmentFormatError, match="no text in UTF-8"):
        alignment.read_gold(tmp_path / "latin")
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf0-0 1p1\r\n\r\n")
    assert alignment.read_gold(tmp_path / "windows") == [GoldLinks({(0, 0)}, {(1, 1)}), GoldLinks(frozenset())]
    assert issubclass(AlignmentFormatError, TLNormsError) and issubclass(AlignmentInputError, TLNormsError)


def test_sentence_pairs(tmp_path):
    file = tmp_path / "pairs"
    file.write_text("das Haus ||| the house\n a \t b c\n\n", encoding="utf-8")
    pairs = alignment.read_pairs(file)
    assert [(pair.source, pair.target) for pair in pairs] == [(("das", "Haus"), ("the", "house")), (("a",), ("b", "c"))]
    for number, line in ((2, "no separator"), (3, "a ||| "), (4, "a ||| b ||| c")):
        file.write_text("a ||| b\n" * (number - 1) + line + "\na ||| b\n")
        with pytest.raises(AlignmentFormatError, match=f"line {number} of .*expected source and target"):
            alignment.read_pairs(file)
    with pytest.raises(AlignmentInputError, match="there is no file"):
        alignment.read_pairs(tmp_path / "missing")
