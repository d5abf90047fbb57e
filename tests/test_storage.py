"""Every result through a file, a pickle and a device, and back; files that are wrong are refused by name."""

import dataclasses
import importlib
import json
import math
import pickle
import pkgutil
import struct

import numpy as np
import plot_results
import pytest
import tiny
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import tl_norms
from tl_norms import attribute, direct_attribution, logit, metrics, storage
from tl_norms.edits import Edit
from tl_norms.ranking import Ranking
from tl_norms.storage.classes import CLASSES, class_named
from tl_norms.storage.storable import Storable
from tl_norms.storage.tree import Reader, Writer, moved

TARGET = logit(7) - logit(11)
KIND = tiny.KINDS[0]
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])


def encoder_decoder():
    """The cache of a tiny Marian, its decoder's and encoder's positions of different numbers."""
    bridges = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")
    sizes = dict(
        vocab_size=61, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
        pad_token_id=0, decoder_start_token_id=0, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.MarianConfig(**sizes)
    model = transformers.MarianMTModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bridge = bridges.build_bridge_from_module(model, "MarianMTModel", hf_config=config)
    with torch.no_grad():
        return bridge.run_with_cache(torch.arange(3, 10)[None], decoder_input=torch.arange(20, 25)[None])[1]


def edited():
    """Block norms of a run in which a head was scaled."""
    made = tiny.make("gpt2", KIND)
    name = next(hook for hook in made.model.hook_dict if hook.endswith("0.attn.hook_z"))
    with made.model.hooks(fwd_hooks=[(name, lambda value, hook: value * 0.5)]):
        cache = made.cache()
    return tl_norms.block_norms(cache, "all", edits="replace")


def sketched():
    return tl_norms.block_norms(tiny.make("gpt2", KIND).cache(), "all", sketch=8)


def one_text(**options):
    """A cache without a batch axis."""
    cache = tiny.make("gpt2", KIND).cache(tiny.Tiny.tokens(1))
    cache.remove_batch_dim()
    return cache


def of_bfloat16():
    return tl_norms.block_norms(tiny.make("gpt2", KIND, torch.bfloat16).cache(), check=False)


def recorded():
    """Mixing ratios without maps or patterns."""
    made = tiny.make("gpt2", KIND)
    with torch.no_grad(), tl_norms.NormRecorder(made.model, keep="mixing_ratio") as recorder:
        made.model(made.tokens())
    return recorder.norms


def padded():
    made = tiny.make("bert", KIND)
    norms = tl_norms.block_norms(made.cache(mask=MASK), "all", mask=MASK, tokens=[list("abcdefg"), list("hijk")])
    assert norms.token_strings == (tuple("abcdefg"), (*"hijk", "", "", ""))
    return norms


def amplified():
    cache, tokens = tiny.make("bert", KIND).cache(mask=MASK), [list("abcdefg"), list("hijk")]
    maps = tl_norms.ffn_maps(cache, mask=MASK, tokens=tokens)
    return metrics.ff_amplification(maps)


RESULTS = {
    "BlockNorms": lambda: tl_norms.block_norms(tiny.make("gpt2", KIND).cache(), "all"),
    "BlockNorms without batch axis": lambda: tl_norms.block_norms(one_text(), tokens=list("abcdefg")),
    "BlockNorms, padded": padded,
    "BlockNorms, edited": edited,
    "BlockNorms, sketched": sketched,
    "BlockNorms of bfloat16": of_bfloat16,
    "BlockNorms without maps": recorded,
    "BlockNorms of a decoder": lambda: tl_norms.block_norms(encoder_decoder(), "all"),
    "MixingShares": lambda: tl_norms.block_norms(encoder_decoder(), "all").mixing_shares("attn_res_ln_cross_res"),
    "CrossNorms": lambda: tl_norms.cross_norms(encoder_decoder(), source_mask=torch.ones(1, 7)),
    "Attribution": lambda: attribute(tiny.make("gpt2", KIND).cache(), TARGET),
    "Attribution without batch axis": lambda: attribute(one_text(), TARGET, tokens=list("abcdefg")),
    "Attribution of several targets": lambda: attribute(tiny.make("llama_gqa", KIND).cache(), [TARGET, logit(3)]),
    "Attribution of an encoder-decoder": lambda: attribute(encoder_decoder(), TARGET),
    "Attribution without edges": lambda: attribute(tiny.make("gpt2", KIND).cache(), TARGET).without_edges(),
    "DirectAttribution": lambda: direct_attribution(tiny.make("gpt2", KIND).cache(), TARGET),
    "Cancellation": lambda: metrics.cancellation(tiny.make("bert", KIND).cache()),
    "FFAmplification": amplified,
    "ComposedMaps": lambda: tl_norms.methods.alti(tiny.make("bert", KIND).cache()),
    "InformationFlow": lambda: tl_norms.methods.information_flow(tiny.make("gpt2", KIND).cache()),
    "BlockNorms of shares": lambda: tl_norms.block_norms(tiny.make("gpt2", KIND).cache(), measure="share"),
    "TokenNorms": lambda: tl_norms.propagate(tiny.make("gpt2", KIND).cache()).without_vectors(),
    "TokenNorms along directions": lambda: tl_norms.propagate(
        tiny.make("bert", KIND).cache(), measure=tl_norms.Onto(torch.ones(2, tiny.D_MODEL)), start=1
    ).without_vectors(),
    "TokenNorms of an encoder-decoder": lambda: tl_norms.propagate(encoder_decoder()).without_vectors(),
    "DecompX": lambda: tl_norms.methods.decompx(tiny.make("bert", KIND).cache(), TARGET),
    "Ranking": lambda: attribute(tiny.make("gpt2", KIND).cache(), TARGET).top(4),
}


@pytest.fixture(scope="module", params=list(RESULTS))
def result(request):
    return RESULTS[request.param]()


def same(one, other, path="result"):
    """The same values, types, dtypes and bits; tensors that are views may have other strides."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, path
        assert torch.equal(one.nan_to_num(7.25), other.nan_to_num(7.25)) and not other.requires_grad, path
        assert torch.equal(one.isnan(), other.isnan()), path
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), path
    elif isinstance(one, tuple | list):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{path}[{number}]")
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            same(one[key], other[key], f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name), f"{path}.{field.name}")
    else:
        assert one == other or (one != one and other != other), path


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from tensors([getattr(value, field.name) for field in dataclasses.fields(value)])


def test_a_file_gives_the_result_back(result, tmp_path):
    result.save(tmp_path / "result.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["result.safetensors"]
    again = tl_norms.load(tmp_path / "result.safetensors")
    same(result.for_storage(), again)
    assert repr(again) == repr(result)


def test_files_and_pickles_of_token_norms_hold_no_run(tmp_path):
    found = tl_norms.propagate(tiny.make("gpt2", KIND).cache())
    vectors = found.vectors(-1)
    found.save(tmp_path / "norms")
    for kept in (tl_norms.load(tmp_path / "norms"), pickle.loads(pickle.dumps(found))):
        same(kept, found.without_vectors())
        for read in (lambda kept=kept: kept.vectors(-1), lambda kept=kept: kept.logits(3)):
            with pytest.raises(tl_norms.UnknownOptionError, match=r"propagate\(cache\) again"):
                read()
    assert torch.equal(found.cpu().vectors(-1), vectors) and found.to("meta").norms.is_meta


def test_a_pickle_gives_the_result_back(result):
    same(result, pickle.loads(pickle.dumps(result)))


def test_a_result_moves_to_another_device(result):
    there = result.to("meta")
    assert all(one.device.type == "meta" for one in tensors(there)) and type(there) is type(result)
    assert not any(one.device.type == "meta" for one in tensors(result))  # this one stays
    same(result, result.cpu())


def test_no_result_carries_a_graph():
    """Made while gradients are on, of a model whose parameters want them."""
    made = tiny.make("gpt2", KIND)
    assert any(parameter.requires_grad for parameter in made.model.parameters())
    _, cache = made.model.run_with_cache(made.tokens())
    maps = tl_norms.block_norms(cache, "all")
    found = [maps, attribute(cache, TARGET), direct_attribution(cache, TARGET), metrics.cancellation(cache)]
    found += [metrics.ff_amplification(maps), tl_norms.methods.alti(cache), maps.head_norms, maps.attention]
    for one in found:
        assert not [t for t in tensors(one) if t.requires_grad], type(one)


def test_a_loaded_attribution_answers_as_before(tmp_path):
    """Edges are in the file, the weights that they were made of are not."""
    made = tiny.make("gpt2", KIND)
    why = attribute(made.cache(), TARGET)
    why.save(tmp_path / "why")
    again = tl_norms.load(tmp_path / "why")
    for kind in ("edges", "heads", "tokens", "ffn"):
        assert again.top(5, kind).rows == why.top(5, kind).rows
    for layer in range(2):
        assert torch.equal(again.edges(layer), why.edges(layer))
    assert torch.equal(again.tokens, why.tokens)
    with safe_open(tmp_path / "why", framework="pt") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    weights = {tuple(p.shape) for p in made.model.parameters() if p.ndim > 1}
    assert weights and not weights & set(shapes)
    again.without_edges().save(tmp_path / "small")
    assert (tmp_path / "small").stat().st_size < (tmp_path / "why").stat().st_size


def test_a_loaded_attribution_still_checks_its_edges(tmp_path):
    attribute(tiny.make("gpt2", KIND).cache(), TARGET).save(tmp_path / "why")
    again = tl_norms.load(tmp_path / "why")
    again._credit.stack.kept[1].edges[0, 0, 0, 2, 1] += 10
    with pytest.raises(tl_norms.DecompositionError, match="layer 1"):
        again.edges(1)


def test_what_is_shared_is_stored_and_moved_once():
    pattern = torch.rand(3, 3)
    writer = Writer()
    tree = writer.written({"one": (pattern, pattern), "two": pattern.T}, "")
    assert len(writer.tensors) == 2  # the transpose is another tensor on the same memory
    again = Reader(writer.tensors).read(json.loads(json.dumps(tree)))
    assert torch.equal(again["two"], pattern.T) and again["one"][0] is again["one"][1]
    there = moved((pattern, [pattern]), "meta")
    assert there[0] is there[1][0]


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, -math.inf, 0.1, -0.0, 3, True, None, "ü\n\x00", (), [], {}, ((1,), [2.5]),
        {1: "a", (2, 3): {"b": None}, "1": "another key", None: 0},
        torch.zeros(0, 3), torch.tensor(2), torch.tensor([True, False]), torch.tensor([1e-40], dtype=torch.float64),
        torch.tensor([1.5], dtype=torch.bfloat16), torch.linspace(0, 1, 6).reshape(2, 3).expand(4, 2, 3),
        np.arange(6).reshape(2, 3),
        np.array([math.nan, 1.5], np.float32), Edit(1, "hook", ((0, 2),), (), None, False),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_every_kind_of_value(value):
    writer = Writer()
    text = json.dumps(writer.written(value, ""), allow_nan=False)
    same(value, Reader(writer.tensors).read(json.loads(text)))
    if isinstance(value, float):
        again = Reader({}).read(json.loads(text))
        assert math.copysign(1, again) == math.copysign(1, value)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, 1j, object(), torch.nn.Linear(2, 2), np.array(["a"]), b"a", print],
    ids=lambda value: type(value).__name__,
)
def test_what_no_file_holds_is_refused(value, tmp_path):
    with pytest.raises(storage.UnstorableError, match="rows.0.1"):
        Ranking(("a", "b"), (("x", value),)).save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_every_result_class_may_be_in_a_file():
    """The table names classes that exist, and all that can be saved."""
    for name in CLASSES:
        assert class_named(name).__name__ == name
    for module in pkgutil.walk_packages(tl_norms.__path__, "tl_norms."):
        if ".cli" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    waiting, found = [Storable], set()
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            if kind.__module__.startswith("tl_norms."):
                found.add((kind.__name__, kind.__module__))
    assert {name for name, _ in found} >= {"BlockNorms", "Attribution", "CrossNorms"}
    missing = {name for name, module in found if f"tl_norms.{CLASSES.get(name)}" != module}
    assert not missing, f"add {missing} to tl_norms/storage/classes.py"


# ------------------------------------------------------------------------------------------------ wrong files


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.safetensors"
    plot_results.block_norms(2).save(path)
    return path


def parts(path):
    """Metadata and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def refused(path, kind, *words):
    with pytest.raises(kind) as caught:
        tl_norms.load(path)
    assert isinstance(caught.value, tl_norms.ResultFileError) and isinstance(caught.value, tl_norms.TLNormsError)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "nothing", storage.ResultPathError, "nothing", "No such file")
    refused(tmp_path, storage.ResultPathError, "is a folder")
    refused(7, storage.ResultPathError, "7")
    refused("a\0b", storage.ResultPathError)
    with pytest.raises(storage.ResultPathError, match="no_folder"):
        plot_results.block_norms().save(tmp_path / "no_folder" / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"PK\x03\x04 a zip file", b"\x80\x04K\x01.", b"x" * 100, b"{}\n" * 99])
def test_a_file_of_something_else(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", storage.NotAResultError, "not written by save()")


def test_safetensors_of_somebody_else(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.rand(2)}, tmp_path / "file", metadata=metadata)
        refused(tmp_path / "file", storage.NotAResultError, "no result of tl_norms")


def test_a_file_that_is_cut_off(good):
    whole = good.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (9, 40, header - 1, header, header + 10, len(whole) - 1):
        good.write_bytes(whole[:length])
        refused(good, storage.DamagedFileError, "cut off" if length < header else "damaged")
    good.write_bytes(whole + b"more")
    refused(good, storage.DamagedFileError, "damaged")


def test_newer_and_unknown_files(good):
    facts, found = parts(good)
    tree = json.loads(facts["tl_norms_result"])

    def written(**changes):
        save_file(found, good, metadata=facts | changes)

    def changed(change):
        copy = json.loads(json.dumps(tree))
        change(copy)
        written(tl_norms_result=json.dumps(copy))

    written(tl_norms_format="2", tl_norms_version="9.1")
    refused(good, storage.NewerFileError, "format 2", "9.1", "pip install -U")
    written(tl_norms_format="one")
    refused(good, storage.DamagedFileError, "'one'")
    written(tl_norms_result="{")
    refused(good, storage.DamagedFileError)
    for name in ("Popen", "Options", "system", "Credit ", None, ["BlockNorms"]):
        changed(lambda copy, name=name: copy.update({"class": name}))
        refused(good, storage.UnknownResultError, repr(name))
    changed(lambda copy: copy["fields"].update(colour="red"))
    refused(good, storage.NewerFileError, "BlockNorms has colour")
    changed(lambda copy: copy["fields"].pop("heads"))
    refused(good, storage.DamagedFileError, "lacks heads")
    changed(lambda copy: copy["fields"].update(heads={"set": [1]}))
    refused(good, storage.NewerFileError, "set")
    changed(lambda copy: copy["fields"].update(heads=[1]))
    refused(good, storage.DamagedFileError)
    nested = {"tuple": [{"class": "Popen", "fields": {}}]}
    changed(lambda copy: copy["fields"].update(heads=nested))
    refused(good, storage.UnknownResultError, "Popen")
    changed(lambda copy: copy["fields"].update(heads={"dict": [1]}))
    refused(good, storage.DamagedFileError, "dict")
    changed(lambda copy: copy["fields"].update(heads={"tensor": "elsewhere"}))
    refused(good, storage.DamagedFileError, "elsewhere")
    changed(lambda copy: copy["fields"].update(heads={"tensor": ["a"]}))
    refused(good, storage.DamagedFileError)
    changed(lambda copy: None)
    same(plot_results.block_norms(2), tl_norms.load(good))


def test_a_file_with_one_wrong_byte_is_read_or_refused(good):
    """Whatever byte of the description is wrong: never another error."""
    whole = good.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    refusals = 0
    for place in range(0, header, 7):
        good.write_bytes(whole[:place] + bytes([whole[place] ^ 5]) + whole[place + 1 :])
        try:
            tl_norms.load(good)
        except tl_norms.ResultFileError:
            refusals += 1
    assert refusals > header // 20


def test_a_file_of_an_older_version_has_defaults_for_what_came_later(good):
    facts, found = parts(good)
    tree = json.loads(facts["tl_norms_result"])
    for name in ("token_strings", "source_strings", "model_name"):
        del tree["fields"]["facts"]["fields"][name]
    save_file(found, good, metadata=facts | {"tl_norms_result": json.dumps(tree)})
    assert tl_norms.load(good).token_strings is None


def test_a_file_is_replaced_whole_or_not_at_all(good, monkeypatch):
    before = good.read_bytes()

    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fails)
    with pytest.raises(storage.ResultPathError, match="disk full"):
        plot_results.block_norms().save(good)
    assert good.read_bytes() == before and len(list(good.parent.iterdir())) == 1
    monkeypatch.undo()
    plot_results.block_norms().save(str(good))
    assert tl_norms.load(str(good)).value_norms.ndim == 3
