"""No fault in any tensor of the mathematics comes back as a number.

Every dataclass of `tl_norms.linear` that a call constructs is listed with its tensors; then the call is made again for
each of them with one row of that tensor changed by 8 % at that construction. Either it is refused, or nothing that is
returned has changed.
"""

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from architectures import zoo
from tiny import KINDS, make
from torch import Tensor

import tl_norms
import tl_norms.linear
from tl_norms.linear.pieces import pieces

MODULES = [m.name for m in pkgutil.walk_packages(tl_norms.linear.__path__, "tl_norms.linear.")]
CLASSES = [
    thing
    for name in MODULES
    for thing in vars(importlib.import_module(name)).values()
    if dataclasses.is_dataclass(thing) and thing.__module__ == name
]
FACTOR = 1.08
MOST = 4  # constructions of one field that get a fault


def tensors_of(value, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """Tensors held by one field, those in tuples too."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, tuple):
        for number, one in enumerate(value):
            yield from tensors_of(one, (*path, number))


def changed(value, path: tuple, last: bool):
    """The same with one row of one tensor changed: the largest, or the last."""
    if path:
        return tuple(changed(one, path[1:], last) if n == path[0] else one for n, one in enumerate(value))
    if not value.is_floating_point():  # rows of a router: one more or less
        return value.roll(1, -1)
    rows = value.clone().reshape(-1, value.shape[-1] if value.ndim > 1 else 1)
    rows[-1 if last else int(rows.norm(dim=-1).argmax())] *= FACTOR
    return rows.reshape(value.shape)


@contextmanager
def constructing(visit):
    """`visit(class, arguments by field)` may change the arguments of every construction."""
    kept = {cls: cls.__init__ for cls in CLASSES}

    def wrapped(cls, init):
        names = [field.name for field in dataclasses.fields(cls) if field.init]

        def __init__(self, *args, **options):
            arguments = dict(zip(names, args, strict=False)) | options
            visit(cls, arguments)
            init(self, **arguments)

        return __init__

    for cls, init in kept.items():
        cls.__init__ = wrapped(cls, init)
    try:
        yield
    finally:
        for cls, init in kept.items():
            cls.__init__ = init


def sites(call) -> list[tuple[type, int, str, tuple]]:
    """Every tensor at every construction: class, its how-manieth construction, field, place in a tuple."""
    found, counts = [], {}

    def visit(cls, arguments):
        counts[cls] = counts.get(cls, 0) + 1
        for name, value in arguments.items():
            found.extend((cls, counts[cls], name, path) for path, tensor in tensors_of(value) if tensor.numel())

    with constructing(visit):
        call()
    by_field: dict[tuple, list] = {}
    for site in found:
        by_field.setdefault((site[0], site[2], site[3]), []).append(site)
    return [site for group in by_field.values() for site in _some(group)]


def _some(group: list) -> list:
    """The first and the last constructions of one field: experts and scopes repeat the same."""
    return group if len(group) <= MOST else [*group[: MOST // 2], *group[-(MOST // 2) :]]


def with_fault(call, site: tuple, last: bool):
    """The call with one fault."""
    wanted, number, field, path = site
    count = 0

    def visit(cls, arguments):
        nonlocal count
        if cls is wanted:
            count += 1
            if count == number:
                arguments[field] = changed(arguments[field], path, last)

    with constructing(visit):
        return call()


def numbers(norms: tl_norms.BlockNorms) -> list[Tensor]:
    """All that a result returns."""
    ratios = [norms.mixing_ratio(scope) for scope in norms.scopes]
    return [*(norms[scope] for scope in norms.scopes), *ratios, norms.value_norms, norms.head_norms]


def differs(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """By more than rounding, relative to the largest of the row."""
    for one, other in zip(found, wanted, strict=True):
        size = other.abs().amax(-1, keepdim=True).clamp_min(1e-12)
        if bool(((one - other).abs() > 1e-5 * size).any()):
            return True
    return False


def refuse_all(call, places: list[tuple], wanted: list[Tensor], last: bool) -> None:
    """Every fault is refused, or changes nothing."""
    silent, refused = [], 0
    for site in places:
        try:
            found = with_fault(call, site, last)
        except tl_norms.TLNormsError:
            refused += 1
            continue
        if differs(found, wanted):
            silent.append(f"{site[0].__name__}.{site[2]}{list(site[3]) or ''} (construction {site[1]})")
    assert refused > len(places) // 4, "hardly any fault had an effect"
    assert not silent, f"{len(silent)} of {len(places)} faults came back as numbers: {', '.join(silent)}"


def case(name: str):
    """A cache with the stack to analyse."""
    if name in ("bert", "llama_gqa"):
        return make(name, KINDS[0]).cache(), None
    spec = zoo.SPECS[name]
    try:
        return zoo.cached(spec).cache, spec.stack
    except (zoo.NotHere, ValueError, ImportError) as reason:
        pytest.skip(str(reason))


NAMES = [
    "bert",
    "llama_gqa",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "BartForConditionalGeneration",
    "AfmoeForCausalLM",
]


def zeroed(value, path: tuple, last: bool):
    return _replaced(value, path, torch.zeros_like)


def shifted(value, path: tuple, last: bool):
    return _replaced(value, path, lambda one: one.roll(1, -1))


def _replaced(value, path: tuple, by):
    """The same with one tensor replaced."""
    if path:
        return tuple(_replaced(one, path[1:], by) if n == path[0] else one for n, one in enumerate(value))
    return by(value)


def of_attribution(found) -> list[Tensor]:
    parts = [found.value, found.tokens, found.stream, found.offset, found.heads, found.ffn, found.bypass]
    parts += [part for part in (found.queries, found.keys, found.values) if part is not None]
    return [*parts, *(found.edges(layer) for layer in found.layers)]


def of_direct(found) -> list[Tensor]:
    return [found.value, found.embed, found.heads, found.ffn, found.offset]


def of_propagation(found) -> list[Tensor]:
    return [found.norms, found.remainder_norms]


ANALYSES = {
    "attribute": (tl_norms.attribute, {}, of_attribution),
    "attribute, integrated": (tl_norms.attribute, {"attention": "integrated"}, of_attribution),
    "direct_attribution": (tl_norms.direct_attribution, {}, of_direct),
    "propagate": (tl_norms.propagate, {}, of_propagation),
}


@pytest.mark.parametrize("name, fault", [("bert", zeroed), ("llama_gqa", shifted)], ids=["zero", "shift"])
@pytest.mark.parametrize("analysis", ANALYSES)
def test_nor_one_of_another_kind_in_another_analysis(analysis, name, fault, monkeypatch):
    cache, _ = case(name)
    function, options, numbers_of = ANALYSES[analysis]
    width = cache["blocks.0.hook_in"].shape[-1]
    target = tl_norms.direction(torch.linspace(-1, 1, width, dtype=torch.float64))
    given = (cache,) if analysis == "propagate" else (cache, target)

    def call() -> list[Tensor]:
        return numbers_of(function(*given, **options))

    wanted, places = call(), sites(call)
    monkeypatch.setattr(sys.modules[__name__], "changed", fault)
    refuse_all(call, places, wanted, last=False)


ROWS = {"largest row": False, "last row": True}
WAYS = ("formed", "factored", "factored in pieces")
PIECES = {
    "formed": {},
    "formed in pieces": {"formed": 3000},
    "factored": {"formed": 0},
    "factored in pieces": {"formed": 0, "head_vectors": 2048, "kept": 0, "copied": 256},
    "joined, factored in pieces": {"formed": 0, "head_vectors": 2048},
}


def cut_into(way: str, monkeypatch) -> None:
    """Sizes of pieces by which a way is taken."""
    sizes = dataclasses.replace(pieces(torch.device("cpu")), **PIECES[way])
    for module in ("carry.terms", "measure.factors", "measure.lengths", "joined.formed", "joined.factored"):
        monkeypatch.setattr(f"tl_norms.linear.{module}.pieces", lambda device: sizes)


ALL = [(name, row, way) for name in NAMES[:2] for row in ROWS for way in WAYS]
# models whose calls take long: the ways share what is left out here, and the small models have it
EXPERTS = [name for name in NAMES if name.startswith(("Mixtral", "GptOss", "Afmoe"))]
ALL += [
    pytest.param(name, row, way, marks=[pytest.mark.slow] if name in EXPERTS else [])
    for name in NAMES[2:]
    for row, way in zip(ROWS, ("formed", "factored in pieces"), strict=True)
]


@pytest.mark.parametrize("name, row, way", ALL)
def test_no_fault_comes_back_as_a_number(name, row, way, monkeypatch):
    """Whichever way the norms of pairs are made: of all vectors, or of factors, all at once or a few keys at a time."""
    cache, stack = case(name)
    last = ROWS[row]
    cut_into(way, monkeypatch)

    def call() -> list[Tensor]:
        return numbers(tl_norms.block_norms(cache, "all", layers=-1, stack=stack))

    wanted, places = call(), sites(call)
    assert len({cls for cls, *_ in places}) >= 8, "the mathematics was not seen"
    refuse_all(call, places, wanted, last)


def one_by_one(*args, **options):
    raise tl_norms.DecompositionError("layers that are not taken at once")


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(
    "name, way",
    [("bert", way) for way in ("formed", "formed in pieces", "factored", "joined, factored in pieces")]
    + [("llama_gqa", "factored"), ("Gemma2ForCausalLM", "formed")],
)
def test_nor_one_in_layers_taken_at_once(name, way, row, monkeypatch):
    """What is refused there is made again layer by layer; here that is refused too, so that it counts."""
    if name.endswith("LM"):
        cache, stack = case(name)
    else:
        cache, stack = make(name, KINDS[0], torch.float32).cache(), None
    cut_into(way, monkeypatch)
    monkeypatch.setattr("tl_norms.joined_layers.layer_numbers", one_by_one)

    def call() -> list[Tensor]:
        return numbers(tl_norms.block_norms(cache, stack=stack))

    wanted, places = call(), sites(call)
    assert len({cls for cls, *_ in places}) >= 5, "the mathematics was not seen"
    refuse_all(call, places, wanted, ROWS[row])
