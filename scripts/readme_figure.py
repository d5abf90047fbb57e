"""The figure of the README: what MiniLM attends to, and what it takes from there.

    python scripts/readme_figure.py          writes docs/images/minilm_attention_and_norms.svg

Needs `pip install -e '.[demo,plot]'`.
"""

import argparse
from pathlib import Path

import matplotlib

import tl_norms
from tl_norms import plot

TEXT = "The keys to the cabinet are on the table."
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "minilm_attention_and_norms.svg"


def draw(text: str, layer: int, file: Path) -> None:
    """Attention weights beside the norms of the attention block, one layer of MiniLM."""
    model = tl_norms.demo.bert()
    _, cache = model.run_with_cache(text)
    norms, tokens = tl_norms.block_norms(cache, layers=[layer]), model.to_str_tokens(text)
    figure = plot.weight_and_norm(norms, tokens, ["attn", "attn_res_ln"], diagonal=True, title="", backend="matplotlib")
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tl_norms"}):
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=200)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--file", type=Path, default=FIGURE, help="the suffix chooses the format (.svg, .png)")
    arguments = parser.parse_args()
    draw(arguments.text, arguments.layer, arguments.file)
