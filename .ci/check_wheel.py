"""What an installed wheel must do, run from another directory: the package is the wheel's, typed, and computes."""

from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

import tl_norms

package = Path(tl_norms.__file__).parent
assert "site-packages" in package.parts, f"imported from {package}, not from the wheel"
assert (package / "py.typed").exists(), "py.typed is not in the wheel"
assert version("tl_norms") == tl_norms.__version__, (version("tl_norms"), tl_norms.__version__)
assert all("extra ==" in line for line in requires("tl_norms") or [] if line.startswith(("matplotlib", "scipy")))

torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=32, attn_implementation="eager")
gpt2 = GPT2LMHeadModel(config)
with torch.no_grad():
    for parameter in gpt2.parameters():  # untrained norms, all ones, look like folded ones
        parameter += 0.02 * torch.randn_like(parameter)
with TemporaryDirectory() as folder:  # a folder, so that nothing is asked of a hub
    gpt2.save_pretrained(folder)
    model = TransformerBridge.boot_transformers(folder)
_, cache = model.run_with_cache(torch.arange(8)[None])
norms = tl_norms.block_norms(cache, "all")
worst = max(float(error.max()) for error in norms.error.values())
assert norms["attn_res"].shape == (2, 1, 8, 8)
assert 0 < float(norms.mixing_ratio("attn_res").max()) < 1
assert worst < 1e-5, worst
print(f"tl_norms {tl_norms.__version__} from a wheel: {len(norms)} scopes, largest completeness error {worst:.1e}")
