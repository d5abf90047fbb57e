"""Every bad option is an error that says what was expected; a bad text is left out, named and counted, and no more."""

import functools
import gzip
import json

import numpy as np
import pytest
import study_models
import torch

from tl_norms import alignment, studies
from tl_norms.__main__ import main
from tl_norms.cli import load
from tl_norms.errors import TLNormsError

HUGE = 10**5000


def said_by(study, *given, **options) -> str:
    with pytest.raises(TLNormsError) as error:
        study(*given, progress=False, **options)
    assert str(error.value).count("expected") or "no file" in str(error.value) or "no folder" in str(error.value)
    return str(error.value)


OPTIONS = [
    *(("limit", value) for value in (0, -1, 1.5, "3", True, HUGE, -HUGE, [1])),
    *(("chunk", value) for value in (0, "a", None, 2.0, False, float("nan"))),
    *(("batch_tokens", value) for value in (0, None, "4096", 1e3)),
    *(("max_length", value) for value in (0, -4, "8", 8.0, True)),
    *(("stride", value) for value in (0, -1, "2", 1.5)),
    *(("share", value) for value in (1, "0/2", (1,), (2, 2), (-1, 2), (0, 0), (0, 1, 2), (0.0, 1), (True, 2), None)),
    *(("parts", value) for value in (5, [5], b"x", [None], object())),
    *(("resume", value) for value in (5, [], "no/such/folder/x.npz", ".", "x\0y/z", "a" * 5000 + "/b", "~nobody0/x")),
    *(("progress", value) for value in ("no", 2)),
    *(("executor", value) for value in (4, "threads", print)),
    *(("field", value) for value in (None, 5)),
    *(("layers", value) for value in ([], "0", 1.0, True, [None], [0, 0], [0.5], "all", HUGE, [HUGE])),
    ("layres", 1),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=lambda value: str(type(value).__name__))
def test_options_of_every_run(bert, name, value):
    if name == "progress":
        with pytest.raises(studies.StudyInputError, match="progress is .*expected True or False or None"):
            studies.frequency(bert, ["w7"], progress=value)
        return
    said = said_by(studies.frequency, bert, ["w7 w8"], **{name: value})
    assert name in said


@pytest.mark.parametrize("layer", [np.int64(1), [np.int32(0), 1], range(2)])
def test_whole_numbers_of_any_kind_are_layers(bert, layer):
    assert studies.value_norm_dispersion(bert, ["w7 w8"], layers=layer, limit=np.int64(1)).corpus.n_texts == 1


OWN = [
    (studies.mixing_ratio, "types", (None, "token_types", 5, [])),
    (studies.mixing_ratio, "mask_tokens", (0, 1, 12, "0.1", True, float("nan"), [0.1], HUGE)),
    (studies.mixing_ratio, "seed", (None, 1.5, "a")),
    (studies.mixing_ratio, "ranks", ("nowhere.txt", 5, None, {}, {"a": 1}, {1: "b"}, {1: 1.5}, "a" * 5000, "x\0y")),
    (studies.mixing_ratio, "exact_pairs", (-1, None, 1.5)),
    (studies.weight_against_norm, "categories", (None, "no", 1)),
    (studies.weight_against_norm, "categories", (lambda *_: None, lambda *_: "abcd", lambda *_: [1])),
    (studies.amplified_pairs, "k", (0, -1, 1.5, "a", None, True)),
    (studies.amplified_pairs, "normalize", ("rows", 1, True)),
    (studies.amplified_pairs, "largest", ("yes", None, 1)),
    (studies.amplified_pairs, "sketch", (0, 2.5, True, "8")),
    (studies.contextualization_change, "sketch", (0, 2.5, True, "8")),
    (studies.contextualization_change, "bias", ("Player", None, 5)),
    (studies.amplified_pairs, "bias", ("Player", None, [])),
    (studies.cancellation, "bias", ("Player", None, True)),
]


@pytest.mark.parametrize(("study", "name", "values"), OWN, ids=lambda value: getattr(value, "__name__", None))
def test_options_of_single_studies(bert, study, name, values):
    for value in values:
        assert said_by(study, bert, ["w7 w8"], **{name: value})


@pytest.mark.parametrize("given", [None, "gpt2", 5, lambda: "gpt2", torch.zeros(3)])
def test_what_is_no_model(given):
    for study in (functools.partial(studies.frequency, texts=["w7"]), studies.expansion_rate):
        with pytest.raises(studies.StudyInputError, match="expected a model, or a function"):
            study(given)


BAD_TEXTS = [
    torch.zeros(2, 2, 2, dtype=torch.long),
    np.zeros((1, 1, 1, 3), int),
    torch.tensor(5),
    torch.tensor([7.0, 8.0]),
    [HUGE],
    [True, False],
    {"input_ids": [[[7, 8]]]},
    {"input_ids": [7, 8], "attention_mask": [1, 1, 1]},
    {"input_ids": [[7, 8]], "attention_mask": [1, 1]},
    {"input_ids": [7, 8], "attention_mask": [0.5, 1.0]},
    {"input_ids": [7, 8], "attention_mask": [2, 1]},
    {"input_ids": [7, 8], "attention_mask": [0, 0]},
    {"input_ids": [7, 8], "attention_mask": [0.0, -np.inf]},
    {"input_ids": [7, 8], "token_type_ids": [[0, 0, 0]]},
    {"input_ids": None},
    {},
    "w7 \ud800 w8",
    ("w7", "w8 \udfff"),
    ("w7", ""),
    ["w7", "w8", "w9"],
    object(),
    b"w7",
]


@pytest.mark.parametrize("bad", BAD_TEXTS, ids=lambda value: type(value).__name__)
def test_a_bad_text_is_left_out_and_no_more(bert, bad):
    with pytest.warns(studies.ExcludedTextWarning, match="1 of 3 texts are not in the result: text 1 "):
        found = studies.value_norm_dispersion(bert, ["w7 w8", bad, "w9 w10 w11"])
    wanted = studies.value_norm_dispersion(bert, ["w7 w8", "w9 w10 w11"])
    assert np.array_equal(found.mean, wanted.mean) and [text.index for text in found.corpus.excluded] == [1]
    with pytest.raises(studies.StudyInputError, match="none of the 1 texts can be measured: text 0 "):
        studies.value_norm_dispersion(bert, [bad])


def test_a_mask_of_booleans_or_the_other_shape_of_numbers(bert):
    wanted = studies.value_norm_dispersion(bert, [[7, 8]]).mean
    for mask in ([True, True, False], torch.tensor([1, 1, 0]), np.array([1, 1, 0], np.uint8)):
        rows = [{"input_ids": [7, 8, 9], "attention_mask": mask}]
        assert np.array_equal(studies.value_norm_dispersion(bert, rows).mean, wanted)


def test_one_bad_line_of_a_file_ends_nothing(bert, tmp_path):
    file = tmp_path / "corpus.jsonl"
    nested = "[" * 200_000 + "]" * 200_000
    lines = [
        json.dumps({"text": "w7 w8"}),
        nested,
        '{"text": "w7 \\ud800"}',
        '{"text": ' + "9" * 5000 + "}",
        '{"n": ' + "9" * 5000 + ', "text": "w9"}',
        '{"text": {"text": "w7"}}',
        "null",
        '{"text": "w7"',
    ]
    file.write_text("\n".join(lines))
    with pytest.warns(studies.ExcludedTextWarning, match="6 of 8"):
        found = studies.value_norm_dispersion(bert, studies.TextFile(file))
    reasons = {text.name: text.reason for text in found.corpus.excluded}
    assert list(reasons) == [f"line {n}" for n in (2, 3, 4, 6, 7, 8)] and "nested too deeply" in reasons["line 2"]
    assert "lone surrogate at character 3" in reasons["line 3"]
    assert np.array_equal(found.mean, studies.value_norm_dispersion(bert, ["w7 w8", "w9"]).mean)


def test_a_text_that_the_tokenizer_refuses_is_left_out(bert, monkeypatch):
    own = bert.to_tokens

    def to_tokens(text, **options):
        if "w13" in text:
            raise KeyError("no such token: w13")
        return own(text, **options)

    monkeypatch.setattr(bert, "to_tokens", to_tokens)
    with pytest.warns(studies.ExcludedTextWarning, match="text 1 is refused by the tokenizer .KeyError.*w13"):
        found = studies.value_norm_dispersion(bert, ["w7 w8", "w13", "w9"], chunk=2)
    assert np.allclose(found.mean, studies.value_norm_dispersion(bert, ["w7 w8", "w9"], chunk=2).mean, rtol=1e-12)


def test_tables_are_read_by_datasets(bert, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"body": ["w7 w8", "w9 , w10"], "n": [1, 2]})
    wanted = studies.value_norm_dispersion(bert, rows, field="body").mean
    rows.to_csv(tmp_path / "c[1].csv", index=False)
    rows.to_parquet(tmp_path / "c.parquet")
    for name, text in (
        ("c.txt.gz", "w7 w8\n\nw9 , w10\n"),
        ("c.jsonl.gz", '{"body": "w7 w8"}\n{"body": "w9 , w10"}\n'),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    for name in ("c[1].csv", "c.parquet", "c.txt.gz", "c.jsonl.gz"):
        found = studies.value_norm_dispersion(bert, studies.TextFile(tmp_path / name, "body"), field="body")
        assert np.array_equal(found.mean, wanted) and found.corpus.n_texts == 2, name
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(studies.StudyInputError, match="cannot be read by datasets as parquet"):
        studies.value_norm_dispersion(bert, studies.TextFile(tmp_path / "bad.parquet"))


@pytest.mark.parametrize("path", ["missing", "a" * 5000, "x\0y", None, 5, "."])
def test_files_that_are_none(path):
    for read in (studies.TextFile, studies.read_ranks, alignment.read_pairs):
        with pytest.raises(TLNormsError, match="is a folder" if path == "." else "there is no file"):
            read(path)
    with pytest.raises(TLNormsError, match="there is no file|is a folder|expected a file, or a list of lines"):
        alignment.read_gold(path)


@pytest.mark.parametrize("line", ["0-" + "9" * 5000, "9" * 5000 + "p0", "1 1 " + "9" * 5000, "0-١", "²-0", "0-0\ud800"])
@pytest.mark.parametrize("read", [alignment.read_gold, alignment.read_pharaoh, alignment.read_naacl])
def test_odd_lines_of_alignment_files(line, read):
    with pytest.raises(alignment.AlignmentFormatError) as error:
        read([line])
    assert len(str(error.value)) < 400
    with pytest.raises(alignment.AlignmentInputError):
        alignment.GoldLinks({(0, HUGE)})
    with pytest.raises(alignment.AlignmentInputError, match="cannot be written"):
        alignment.write_pharaoh([{(0, 0)}], "no/such/folder/file")
    for settings in (5, None, [None], "AW", [["AWO"]]):
        with pytest.raises(alignment.AlignmentInputError, match="expected 'AWO'"):
            studies.alignment(None, [], [], settings=settings)


@pytest.mark.parametrize(
    "arguments",
    [
        ["mixing-ratio", "--texts", "x", "--limit", "9" * 5000],
        ["mixing-ratio", "--texts", "x", "--limit", "²"],
        ["mixing-ratio", "--texts", "x", "--share", "0/" + "9" * 5000],
        ["mixing-ratio", "--texts", "x", "--layer", "9" * 5000],
        ["mixing-ratio", "--texts", "x", "--field", "\udcff"],
        ["mixing-ratio", "--texts", "x", "--csv", "a" * 5000 + "/b"],
        ["alignment", "--model", "x", "--pairs", "x", "--gold", "x", "--source-prefix", "\udcff"],
    ],
)
def test_arguments_of_the_command(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["study", *arguments])
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "load", lambda name, dtype: study_models.bert())
    monkeypatch.setattr(load, "model_name", lambda given: "tiny")
    with pytest.raises(SystemExit) as stop:
        main(["study", "expansion-rate", "--quiet", "--csv", str(tmp_path / ("a" * 300))])
    assert stop.value.code == 2
    assert "cannot be written" in capsys.readouterr().err
    for texts in ("\udcff.txt", "a" * 5000):
        assert main(["study", "frequency", "--texts", texts]) == 2
        assert "there is no file" in capsys.readouterr().err
