"""No fault in any tensor of the mathematics comes back as a number.

Every dataclass of `tl_norms.linear` that a call constructs is listed with its tensors; then the call is made again for
each of them with one row of that tensor changed by 8 % at that construction. Either it is refused, or nothing that is
returned has changed.
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from architectures import zoo
from tiny import KINDS, make
from torch import Tensor

import tl_norms
import tl_norms.linear
from tl_norms.linear.joined import points
from tl_norms.linear.measure import factors, formed
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
            silent.append(" ".join(str(getattr(part, "__name__", part)) for part in site))
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


# the ways to the numbers of layers taken at once, and of one by itself
RETURNING = ("joined.points", "joined.mixing", "joined.formed", "joined.factored", "hold", "carry.pairs", "carry.terms")
RETURNING += ("measure.formed", "measure.factors", "measure.lengths")
# what these return has been compared, and goes into the result as it is: of a tuple, this place
LAST = {"source_norms": None, "norms_of_heads": None, "head_norms": None}
LAST |= {name: 0 for name in ("plain", "_measured", "factored")} | {name: 1 for name in ("form_pairs", "factor_pairs")}


def returns_of(module) -> Iterator[tuple[object, str, object]]:
    """What returns something in a module: functions, methods, properties, by their owner and name."""
    for name, thing in list(vars(module).items()):
        if isinstance(thing, types.FunctionType) and thing.__module__ == module.__name__:
            yield module, name, thing
        elif isinstance(thing, type) and thing.__module__ == module.__name__:
            for inner, held in list(vars(thing).items()):
                if isinstance(held, types.FunctionType | property | functools.cached_property) and inner[:2] != "__":
                    yield thing, inner, held


@contextmanager
def returning(visit):
    """`visit(name, value)` may change what every function of these modules returns; a piece of a name's site."""
    patched: list[tuple[object, str, object]] = []

    def wrapped(name, function):
        @functools.wraps(function)
        def call(*args, **options):
            return visit(name, function(*args, **options))

        return call

    def put(owner, name, old, new):
        patched.append((owner, name, old))
        setattr(owner, name, new)

    for module in (importlib.import_module(f"tl_norms.linear.{name}") for name in RETURNING):
        for owner, name, held in list(returns_of(module)):
            site = f"{getattr(owner, '__qualname__', module.__name__)}.{name}"
            if isinstance(held, property):
                put(owner, name, held, property(wrapped(site, held.fget)))
            elif isinstance(held, functools.cached_property):
                new = functools.cached_property(wrapped(site, held.func))
                new.__set_name__(owner, name)
                put(owner, name, held, new)
            elif isinstance(owner, type):
                put(owner, name, held, wrapped(site, held))
            else:
                new = wrapped(site, held)
                for other in [one for key, one in sys.modules.items() if key.startswith("tl_norms")]:
                    if vars(other).get(name) is held:
                        put(other, name, held, new)
    try:
        yield
    finally:
        for owner, name, old in reversed(patched):
            setattr(owner, name, old)


def returned_sites(call) -> list[tuple]:
    """Every tensor of everything returned: name, its how-manieth return, place in a tuple."""
    counts: dict[str, int] = {}
    found: dict[tuple, list] = {}

    def visit(name, value):
        counts[name] = counts.get(name, 0) + 1
        last = LAST.get(name.rpartition(".")[2], -1)
        for path, tensor in tensors_of(value):
            if tensor.is_floating_point() and tensor.numel() and last is not None and path != (last,):
                found.setdefault((name, path), []).append((name, counts[name], path))
        return value

    with returning(visit):
        call()
    return [site for group in found.values() for site in _some(group)]


def with_returned_fault(call, site: tuple, last: bool):
    wanted, number, path = site
    count = 0

    def visit(name, value):
        nonlocal count
        if name == wanted:
            count += 1
            if count == number:
                return changed(value, path, last)
        return value

    with returning(visit):
        return call()


@pytest.mark.parametrize("joined", [True, False], ids=["layers at once", "one by one"])
@pytest.mark.parametrize("name, way", [("bert", "formed"), ("llama_gqa", "factored")])
def test_nor_one_in_what_a_function_returns(name, way, joined, monkeypatch):
    """A scale that is applied after the comparison, and lost, is such a fault."""
    cache = make(name, KINDS[0], torch.float32).cache()
    cut_into(way, monkeypatch)
    if joined:
        monkeypatch.setattr("tl_norms.joined_layers.layer_numbers", one_by_one)
    else:
        monkeypatch.setattr("tl_norms.joined_layers._groups", lambda *args: [])

    def call() -> list[Tensor]:
        return numbers(tl_norms.block_norms(cache, layers=None if joined else -1))

    wanted, places = call(), returned_sites(call)
    assert len(places) > 20, "the mathematics was not seen"
    monkeypatch.setattr(sys.modules[__name__], "with_fault", with_returned_fault)
    refuse_all(call, places, wanted, last=False)


@pytest.mark.parametrize("way", ["formed", "factored"])
@pytest.mark.parametrize("joined", [True, False], ids=["layers at once", "one by one"])
def test_nor_a_map_without_the_scale_of_its_norm(joined, way, monkeypatch):
    cache = make("bert", KINDS[0], torch.float32).cache()
    cut_into(way, monkeypatch)
    if joined:
        monkeypatch.setattr("tl_norms.joined_layers.layer_numbers", one_by_one)
        norms = points.Point.norms
        lost = lambda self, out: norms(dataclasses.replace(self, scale=None), out)  # noqa: E731
        monkeypatch.setattr(points.Point, "norms", lost)
    else:
        monkeypatch.setattr("tl_norms.joined_layers._groups", lambda *args: [])
        module = {"formed": formed, "factored": factors}[way]
        norms = module.mixture_norms

        def unscaled(mixture, made, **options):
            found, spots = norms(mixture, made, **options)
            return found if mixture.scale is None else found / mixture.scale[..., None].abs(), spots

        monkeypatch.setattr(module, "mixture_norms", unscaled)
    with pytest.raises(tl_norms.DecompositionError):
        tl_norms.block_norms(cache)
