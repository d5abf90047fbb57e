"""Names of scopes: those of a model's chain, and the papers'."""

from .errors import UnknownScopeError

PAPER_NAMES = {
    "Attn-N": ("attn",),
    "AttnRes-N": ("attn_res",),
    "AttnResLn-N": ("attn_res_ln",),
    "ATB": ("attn_res_ln", "attn_res"),
    "ATBFF": ("attn_res_ln_ff",),
    "ATBFFRES": ("attn_res_ln_ff_res",),
    "ATBFFRESLN": ("attn_res_ln_ff_res_ln",),
    "ATBLN": ("attn_res_ln",),
    "ATBLNFF": ("attn_res_ln_ff",),
    "ATBLNFFRES": ("attn_res_ln_ff_res",),
}
WEIGHT_NAMES = ("Attn-W", "AttnRes-W")  # weights alone, as the papers call them


def is_post_norm(scopes: tuple[str, ...]) -> bool:
    """Whether a chain ends in a layer norm, so that its attention block does too."""
    return scopes[-1].endswith("_res_ln")


def attention_block(scopes: tuple[str, ...], *, normed: bool = True) -> str:
    """The scope that ends the attention block: the first residual connection, and in post-norm chains its norm."""
    first = next(number for number, scope in enumerate(scopes) if scope.endswith("_res"))
    after = scopes[first] + "_ln"
    return after if normed and is_post_norm(scopes) and after in scopes else scopes[first]


def resolve_scope(name: str, scopes: tuple[str, ...]) -> str:
    """A scope of this chain from its own name or from the papers'."""
    if name in scopes:
        return name
    candidates = PAPER_NAMES.get(name, ())
    if name == "ATB" and not is_post_norm(scopes):
        candidates = ("attn_res",)
    if name == "cross":  # cross-attention itself, whatever comes before it
        candidates = tuple(scope for scope in scopes if scope.endswith("_cross"))
    for candidate in candidates:
        if candidate in scopes:
            return candidate
    raise UnknownScopeError(
        f"unknown scope {name!r}. This model's chain is {', '.join(scopes)}; "
        f"the papers' names {', '.join(PAPER_NAMES)} are understood where the chain has them."
    )
