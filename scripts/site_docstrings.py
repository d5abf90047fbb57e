"""Used by mkdocs.yml: what our docstrings say, in the form that the site's parser expects.

"Example:" is a section of code, not a note; "mask, bias: as for block_norms" speaks of two parameters; and what stands
without a colon among the errors, names alone or "Otherwise as block_norms.", is not to be lost.
"""

import re

import griffe

_ITEM = re.compile(r"( {4,})([*\w]+(?:, [*\w]+)+): ")
_ERRORS = re.compile(r" {4}((?:[A-Z]\w+(?:Error|Warning)(?:, |,$|$))+)")


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    lines, section, number = text.split("\n"), "", 0
    out: list[str] = []
    while number < len(lines):
        line = lines[number]
        number += 1
        if line and not line.startswith(" "):
            section = line
        if section == "Raises:" and line.startswith("    ") and line[4] != " ":
            out.append(_raised(line, first=out[-1] == section))
            continue
        item = _ITEM.match(line) if section in ("Args:", "Attributes:", "Keys:") else None
        if item is None:
            out.append(line)
            continue
        body = [line[item.end() :]]
        while number < len(lines) and lines[number].startswith(item[1] + " "):
            body.append(lines[number])
            number += 1
        for name in item[2].split(", "):
            out += [f"{item[1]}{name}: {body[0]}", *body[1:]]
    return "\n".join(out).replace("\nKeys:\n", "\nAttributes:\n")


def _raised(line: str, first: bool) -> str:
    names = _ERRORS.fullmatch(line)
    if names is not None:
        return f"    {names[1].rstrip(', ')}: see [Errors](errors.md)."
    if re.match(r" {4}[\w, ]+: ", line):
        return line
    return f"    TLNormsError: {line[4:5].lower()}{line[5:]}" if first else f"    {line}"
