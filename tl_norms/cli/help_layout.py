"""Help whose last part fits the terminal: prose is wrapped, a command goes on in a line of its own.

Every line of an epilog is one paragraph. A line that begins with "  tl-norms" is a command, which may have a comment in
parentheses, three blanks or more after it.
"""

import argparse
import re
import textwrap

_COMMAND = re.compile(r"  (tl-norms\b.*?)(?: {3,}(\(.*\)))?$")
_COLUMN = 54  # of comments, where there is room


class HelpLayout(argparse.RawDescriptionHelpFormatter):
    """The formatter of all commands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(part for line in text.splitlines() for part in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    found = _COMMAND.fullmatch(line)
    if found is None:
        margin = line[: len(line) - len(line.lstrip())]
        return textwrap.wrap(line.strip(), width, initial_indent=margin, subsequent_indent=margin) or [""]
    command, comment = found.groups()
    lines = _command(command, width)
    if comment is None:
        return lines
    beside = f"{lines[-1]:{_COLUMN}}{comment}"
    if len(lines) == 1 and len(lines[0]) < _COLUMN - 1 and len(beside) <= width:
        return [beside]
    return lines + textwrap.wrap(comment, width, initial_indent="      ", subsequent_indent="      ")


def _command(command: str, width: int) -> list[str]:
    """A command that can be copied: broken before an option, with a backslash at the end of the line."""
    parts = re.split(r" (?=--|\"|> )", command)
    lines = ["  " + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append("      " + part)
        else:
            lines[-1] += " " + part
    return lines
