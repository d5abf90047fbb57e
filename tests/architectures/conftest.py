"""The zoo is that of TransformerLens 4: older versions boot fewer models, and some of these fail inside them."""

try:
    from transformer_lens import HookedTransformer  # noqa: F401  versions up to 3 have it
except ImportError:
    pass
else:
    collect_ignore_glob = ["test_*.py"]
