"""The options of `--why`. Standard library only, like all arguments."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `--why`."""
    option = parser.add_argument
    option("--why", action="store_true", help="where the prediction comes from: tokens, heads, edges, feed-forwards")
    option("--logit", metavar="TOKEN", help="with --why: this token's logit instead of the predicted one's lead")
    option("--against", metavar="TOKEN", help="with --logit: minus this token's logit")
    option("--at", metavar="N", type=int, help="with --why: the position whose prediction it is, default the last")
    option(
        "--attention",
        choices=("held", "integrated"),
        help="with --why: attention patterns held (what was moved, the default) or integrated (also why)",
    )
    option("--baseline", metavar="TOKEN", help="with --why: measure tokens against this token at every position")
    option("--like", metavar="TEXT", help="with --why: the cosine to this sentence's mean-pooled embedding")


def refuse(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Exit with a message where the options of `--why` do not fit together."""
    if not found.why:
        for name in ("logit", "against", "at", "like", "attention", "baseline"):
            if getattr(found, name) is not None:
                parser.error(f"--{name} belongs to --why")
        return
    if found.against is not None and found.logit is None:
        parser.error("--against TOKEN needs --logit TOKEN")
    if found.like is not None and (found.logit is not None or found.at is not None):
        parser.error("--like explains the cosine to a sentence: leave --logit and --at out")
    for name in ("scope", "layer", "target"):
        if getattr(found, name) is not None:
            parser.error(f"--why takes the whole model: leave --{name} out")
