"""`tl-norms demo`: the first example on an embedded model, with its page."""

import argparse
import sys
from collections.abc import Sequence

from .arguments import unwritable

TEXT = "The keys to the cabinet"
GOOD, BAD = " are", " is"
SENTENCE = f"{TEXT}{GOOD} on the table."


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of `tl-norms demo`."""
    parser = argparse.ArgumentParser(
        prog="tl-norms demo",
        description=f"The first example: why does a language model say '{GOOD}' after '{TEXT}'? Writes a page to look "
        f"into. With --model bert: norms and attention weights of a sentence in a small sentence encoder.",
    )
    add = parser.add_argument
    add("--model", choices=("lm", "bert"), help="SmolLM2-135M-Instruct or all-MiniLM-L6-v2; default: lm if installed")
    add("--online", action="store_true", help="the public model from the hub instead of the installed package")
    add("--html", metavar="FILE", default="tl_norms_demo.html", help="the page; default: %(default)s")
    found = parser.parse_args(argv)
    if problem := unwritable(found.html):
        parser.error(f"--html: {problem}")
    return found


def run(options: argparse.Namespace) -> int:
    """Run the example, print its numbers, write its page."""
    from .. import demo
    from ..errors import MissingExtraError
    from ..page import write

    chosen = options.model
    if chosen is None:
        chosen = "lm"
        if not options.online:
            try:
                demo.lm_file()
            except MissingExtraError as error:
                print(f"tl-norms: note: the norms of {demo.BERT} are shown, because {error}", file=sys.stderr)
                chosen = "bert"
    print(f"tl-norms: loading {demo.LM if chosen == 'lm' else demo.BERT} ...", file=sys.stderr)
    model = (demo.lm if chosen == "lm" else demo.bert)(online=options.online)
    page = _agreement(model) if chosen == "lm" else _norms(model)
    write(options.html, page)
    print(f"tl-norms: wrote {options.html}: open it in a browser", file=sys.stderr)
    return 0


def _agreement(model) -> str:
    import torch

    from .. import attribute, logit, required_hooks
    from ..page import page_of_attribution
    from . import why

    target = logit(GOOD) - logit(BAD)
    with torch.no_grad():
        _, cache = model.run_with_cache(TEXT, names_filter=required_hooks(model, target=target))
    found = attribute(cache, target)
    words = list((found.token_strings or ((),))[0])
    print(f"Why {GOOD!r} and not {BAD!r} after {TEXT!r}?\n")
    why.show(why.Why(TEXT, words, None, found))
    return page_of_attribution(found, text=TEXT)


def _norms(model) -> str:
    import torch

    from .. import block_norms
    from ..page import page_of_norms

    with torch.no_grad():
        _, cache = model.run_with_cache(SENTENCE)
    norms = block_norms(cache, "all")
    print(f"{SENTENCE!r}\n\n{norms!r}\n\nstrongest sources of 'are', scope attn_res, layer {norms.layers[-1]}:")
    print(norms.top("are", scope="attn_res"))
    return page_of_norms(norms, text=SENTENCE)
