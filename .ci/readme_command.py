"""Print a command of the README's section "Install and try", exactly as it is written there.

python .ci/readme_command.py 1    # installs the package and analyses a sentence
python .ci/readme_command.py 2    # installs and runs the tests
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def commands() -> list[str]:
    section = README.read_text(encoding="utf-8").split("\n## Install and try\n")[1].split("\n## ")[0]
    return [block.strip() for block in re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)]


if __name__ == "__main__":
    found = commands()
    if len(found) != 2 or not all(command.startswith("pip install -e ") for command in found):
        sys.exit(f"README.md: expected two commands that install and run, found {found}")
    print(found[int(sys.argv[1]) - 1])
