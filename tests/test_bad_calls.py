"""Arguments that mean nothing, of what traces a whole model, draws, stores, judges or is typed in a shell."""

import math

import pytest
import torch
from tiny import KINDS, make

import tl_norms
from tl_norms import faithfulness, logit, methods

D, N = 32, 7
VECTOR = torch.linspace(-1, 1, D, dtype=torch.float64)
TARGET = logit(3)


@pytest.fixture(scope="module")
def tiny():
    return make("gpt2", KINDS[0])


@pytest.fixture(scope="module")
def cache(tiny):
    return tiny.cache()


@pytest.fixture(scope="module")
def why(cache):
    return tl_norms.attribute(cache, TARGET)


@pytest.fixture(scope="module")
def norms(cache):
    return tl_norms.block_norms(cache)


@pytest.fixture(scope="module")
def walked(cache):
    return tl_norms.propagate(cache)


def refused(call):
    """A typed error with a message that says something."""
    with pytest.raises(tl_norms.TLNormsError) as error:
        call()
    assert len(str(error.value)) > 25, str(error.value)


TARGETS = {
    "none": None,
    "a string": " are",
    "a number": 7,
    "a vector": VECTOR,
    "no targets": [],
    "one that is none": [TARGET, None],
    "a mapping": {"a": TARGET},
    "a set": {1},
    "the function": logit,
    "a model": torch.nn.Identity(),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("call", [tl_norms.attribute, tl_norms.direct_attribution])
def test_targets_that_are_none(cache, call, target):
    refused(lambda: call(cache, target))


USED = {
    "a token that is not there": lambda: logit(10**6),
    "a token below zero": lambda: logit(-1),
    "a string without a tokenizer": lambda: logit(" are"),
    "a position that is not there": lambda: logit(3, at=N),
    "before the first": lambda: logit(3, at=-N - 1),
    "a class": lambda: tl_norms.class_logit(0),
    "too wide": lambda: tl_norms.direction(torch.ones(D + 1)),
    "of a layer that is not there": lambda: tl_norms.direction(VECTOR, layer=9),
    "of half a layer": lambda: tl_norms.direction(VECTOR, layer=0.5),
    "of a layer by name": lambda: tl_norms.direction(VECTOR, layer="last"),
    "of all positions but one": lambda: tl_norms.direction(VECTOR, at=torch.ones(N - 1)),
    "at positions that are not there": lambda: tl_norms.direction(VECTOR, at=[0, N]),
    "at no position": lambda: tl_norms.direction(VECTOR, at=[]),
    "weighted by nan": lambda: tl_norms.direction(VECTOR, at=torch.full((N,), math.nan)),
    "times nan": lambda: TARGET * math.nan,
    "times infinity": lambda: TARGET * math.inf,
}


@pytest.mark.parametrize("make_target", USED.values(), ids=USED)
def test_targets_that_the_run_does_not_have(cache, make_target):
    refused(lambda: tl_norms.attribute(cache, make_target()))


MADE = {
    "a token of two dimensions": lambda: logit([[3]]),
    "no tokens": lambda: logit([]),
    "a token that is true": lambda: logit(True),
    "half a token": lambda: logit(3.5),
    "bytes": lambda: logit(b"a"),
    "half a position": lambda: logit(3, at=0.5),
    "a position by name": lambda: logit(3, at="last"),
    "no position": lambda: logit(3, at=None),
    "a class by name": lambda: tl_norms.class_logit("positive"),
    "a matrix": lambda: tl_norms.direction(torch.ones(2, D)),
    "integers": lambda: tl_norms.direction(torch.ones(D, dtype=torch.long)),
    "a direction of words": lambda: tl_norms.direction("a"),
    "no direction": lambda: tl_norms.direction(None),
    "nan": lambda: tl_norms.direction(VECTOR * math.nan),
    "positions by name": lambda: tl_norms.direction(VECTOR, at="mean"),
    "positions that are none": lambda: tl_norms.direction(VECTOR, at=[None]),
    "divided by zero": lambda: TARGET / 0,
    "a probability": lambda: tl_norms.probability(" are"),
}


@pytest.mark.parametrize("make_target", MADE.values(), ids=MADE)
def test_targets_that_cannot_be(make_target):
    refused(make_target)


OPTIONS = {
    "attention": [None, "Integrated", 1, True, ["held"], b"held"],
    "ff": [None, "IG", 1, ["ig"]],
    "edits": [None, "keep", 0, ["add"]],
    "baseline": ["no tokenizer", -1, 10**6, 1.5, True, b"a", torch.ones(D + 1), torch.full((D,), math.nan), [1]],
    "check": ["no", 2, None],
    "mask": [torch.zeros(2, N), torch.ones(N), "yes", 1, torch.full((2, N), 0.5)],
    "tokens": [5, [1, 2], ["a"], [["a"] * N] * 3],
}


@pytest.mark.parametrize("name, value", [(name, v) for name, values in OPTIONS.items() for v in values], ids=repr)
def test_options_of_attribute(cache, name, value):
    refused(lambda: tl_norms.attribute(cache, TARGET, **{name: value}))


RESULTS = {
    "edges of no layer": lambda why: why.edges(9),
    "edges by name": lambda why: why.edges("0"),
    "edges of half a layer": lambda why: why.edges(0.5),
    "logits of held patterns": lambda why: why.logits(0),
    "edges of another stack": lambda why: why.edges(0, "encoder"),
}


@pytest.mark.parametrize("call", RESULTS.values(), ids=RESULTS)
def test_results_of_attribute(why, call):
    refused(lambda: call(why))


WALKS = {
    "start": [9, "0", 0.5, -9, True],
    "layers": [9, "0", 0.5, True, []],
    "max_memory": ["1GB", 0, math.nan],
    "measure": ["L2", 1, None],
    "mask": [torch.ones(N), torch.zeros(2, N)],
    "check": ["no", 2],
    "ff": ["IG", 1],
}


@pytest.mark.parametrize("name, value", [(name, v) for name, values in WALKS.items() for v in values], ids=repr)
def test_options_of_propagate(cache, name, value):
    refused(lambda: tl_norms.propagate(cache, **{name: value}))


DIRECTIONS = [
    torch.ones(D + 1),
    torch.ones(2, D, 1),
    torch.ones(0, D),
    VECTOR * math.nan,
    "a",
    None,
    [[1.0], [2.0, 3.0]],
]


@pytest.mark.parametrize("value", DIRECTIONS, ids=lambda value: str(getattr(value, "shape", value)))
def test_directions_of_heads(cache, value):
    refused(lambda: tl_norms.project_heads(cache, 0, value))
    if isinstance(value, torch.Tensor):  # anything else is told by the tests' own check of types
        refused(lambda: tl_norms.decompose(cache, 0, "attn").project(value))


@pytest.mark.parametrize("layer", [9, "0", None, 0.5, [0, 1], True], ids=repr)
def test_layers_of_heads(cache, layer):
    refused(lambda: tl_norms.project_heads(cache, layer, VECTOR))


MAPS = {
    "one axis": torch.ones(3),
    "not square": torch.ones(2, 3, 4),
    "nan": torch.full((2, 3, 3), math.nan),
    "infinite": torch.full((2, 3, 3), math.inf),
    "no layers": torch.ones(0, 3, 3),
    "words": "maps",
    "a list": [[1.0]],
    "none": None,
}


@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_maps_that_cannot_be_composed(maps):
    refused(lambda: tl_norms.rollout(maps))
    refused(lambda: tl_norms.attention_flow(maps))


METHODS = {
    "no cache": lambda cache: methods.attention_rollout({}),
    "globenc of nothing": lambda cache: methods.globenc(None),
    "no such stack": lambda cache: methods.norm_rollout(cache, stack="encoder"),
    "no such position": lambda cache: methods.information_flow(cache, 99),
    "a position by name": lambda cache: methods.information_flow(cache, "last"),
    "a threshold above one": lambda cache: methods.information_flow(cache, threshold=2),
    "a threshold of words": lambda cache: methods.information_flow(cache, threshold="low"),
    "a threshold of nan": lambda cache: methods.information_flow(cache, threshold=math.nan),
    "a floor below zero": lambda cache: methods.information_flow(cache, floor=-1),
    "a mask of one text": lambda cache: methods.alti(cache, mask=torch.ones(1, N)),
    "zeroing of nothing": lambda cache: methods.value_zeroing(7),
    "a logit that is none": lambda cache: methods.alti_logit(cache, None),
}


@pytest.mark.parametrize("call", METHODS.values(), ids=METHODS)
def test_methods(cache, call):
    refused(lambda: call(cache))


FILES = {
    "no such folder": lambda why, at: why.save(at / "no" / "such" / "why.safetensors"),
    "a folder": lambda why, at: why.save(at),
    "no path": lambda why, at: why.save(None),
    "a number": lambda why, at: why.save(3.5),
    "nothing there": lambda why, at: tl_norms.load(at / "nothing"),
    "load a folder": lambda why, at: tl_norms.load(at),
    "load nothing": lambda why, at: tl_norms.load(None),
    "an empty file": lambda why, at: tl_norms.load(written(at / "empty", b"")),
    "a text": lambda why, at: tl_norms.load(written(at / "text", b"hello, this is no result at all")),
    "zeros": lambda why, at: tl_norms.load(written(at / "zeros", bytes(64))),
    "another zip": lambda why, at: tl_norms.load(written(at / "zip", b"PK\x05\x06" + bytes(18))),
    "half a file": lambda why, at: tl_norms.load(half(why, at / "half")),
}


def written(path, content):
    path.write_bytes(content)
    return path


def half(why, path):
    why.save(path)
    saved = next(path.parent.glob(path.name + "*"))
    content = saved.read_bytes()
    return written(saved, content[: len(content) // 2])


@pytest.mark.parametrize("call", FILES.values(), ids=FILES)
def test_files(why, tmp_path, call):
    refused(lambda: call(why, tmp_path))


TOKENS = [list("abcdefg"), list("hijklmn")]
PICTURES = {
    "no tokens": lambda plot, norms, why: plot.layer_maps(norms),
    "too few tokens": lambda plot, norms, why: plot.layer_maps(norms, ["a"], batch=0),
    "no such text": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=5),
    "no text chosen": lambda plot, norms, why: plot.layer_maps(norms, TOKENS),
    "no such layer": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=0, layers=[9]),
    "no layers": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=0, layers=[]),
    "no such scope": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=0, scope="attn_lm"),
    "no such backend": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=0, backend="ascii"),
    "no such scale": lambda plot, norms, why: plot.layer_maps(norms, TOKENS, batch=0, scale="log"),
    "not a result": lambda plot, norms, why: plot.layer_maps({}, TOKENS[0]),
    "none": lambda plot, norms, why: plot.head_grid(None),
    "norms as an attribution": lambda plot, norms, why: plot.token_strip(norms, TOKENS[0]),
    "heads that are not there": lambda plot, norms, why: plot.head_maps(norms, TOKENS, batch=0, layer=0, heads=[99]),
    "numbers as tokens": lambda plot, norms, why: plot.token_strip(why, [[1] * N] * 2, batch=0),
}


@pytest.mark.parametrize("call", PICTURES.values(), ids=PICTURES)
def test_pictures(norms, why, call):
    plot = pytest.importorskip("tl_norms.plot")
    pytest.importorskip("plotly")
    refused(lambda: call(plot, norms, why))


JUDGED = {
    "no model": lambda model, task: faithfulness.evaluate(None, task),
    "a name for a model": lambda model, task: faithfulness.evaluate("gpt2", task),
    "no such task": lambda model, task: faithfulness.evaluate(model, "no such task"),
    "no task": lambda model, task: faithfulness.evaluate(model, []),
    "a number for a task": lambda model, task: faithfulness.evaluate(model, 5),
    "no such method": lambda model, task: faithfulness.evaluate(model, task, "no such method"),
    "a number for a method": lambda model, task: faithfulness.evaluate(model, task, 5),
    "no such metric": lambda model, task: faithfulness.evaluate(model, task, metrics=["no such metric"]),
    "no such removal": lambda model, task: faithfulness.evaluate(model, task, removals=["delete"]),
    "no removal": lambda model, task: faithfulness.evaluate(model, task, removals=[]),
    "no such replacement": lambda model, task: faithfulness.evaluate(model, task, replacement="median"),
    "fractions above one": lambda model, task: faithfulness.evaluate(model, task, fractions=[2.0]),
    "fractions of words": lambda model, task: faithfulness.evaluate(model, task, fractions="half"),
    "a limit of zero": lambda model, task: faithfulness.evaluate(model, task, limit=0),
    "half a limit": lambda model, task: faithfulness.evaluate(model, task, limit=1.5),
    "no draws": lambda model, task: faithfulness.evaluate(model, task, draws=0),
    "draws by name": lambda model, task: faithfulness.evaluate(model, task, draws="many"),
    "a seed of words": lambda model, task: faithfulness.evaluate(model, task, seed="a"),
    "half a chunk": lambda model, task: faithfulness.evaluate(model, task, chunk=0.5),
    "a share of nothing": lambda model, task: faithfulness.evaluate(model, task, share=(2, 1)),
}


@pytest.mark.parametrize("call", JUDGED.values(), ids=JUDGED)
def test_judging(tiny, call):
    example = faithfulness.Example("a b c d", (3, 5, 7, 9), 11, 13, evidence=(1,))
    refused(lambda: call(tiny.model, faithfulness.Task("mine", (example,))))


SHELL = [
    [],
    ["--why"],
    ["--model"],
    ["--layer", "x", "text"],
    ["--layer", "99", "text"],
    ["--scope", "attn_lm", "text"],
    ["--json", "--html", "x"],
    ["--why", "--at", "x", "text"],
    ["--why", "--at", "99", "--like", "a", "text"],
    ["--why", "--logit", "text"],
    ["--dtype", "int8", "text"],
    ["--no-such-option", "text"],
    ["study", "no such study", "x"],
    ["judge", "--task", "no such task"],
    ["show", "/no/such/file"],
]


@pytest.mark.parametrize("arguments", SHELL, ids=" ".join)
def test_the_command_line(minilm, arguments, capsys):
    """It ends with a number that is not zero and one message, no traceback."""
    from tl_norms.cli.run import main

    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code
    said = capsys.readouterr()
    assert code not in (0, None) and "Traceback" not in said.err + said.out
    assert len(said.err + said.out) > 20


ESTIMATES = [
    (0, "propagate"),
    (-1, "propagate"),
    (2.5, "propagate"),
    ("8", "attribute"),
    (True, "attribute"),
    (8, "all"),
]


@pytest.mark.parametrize("n, what", ESTIMATES)
def test_estimates(tiny, n, what):
    refused(lambda: tl_norms.estimate(tiny.model, n, what))
