"""`python -m tl_norms TEXT` and the console script `tl-norms`."""

import sys

from .cli.run import main

if __name__ == "__main__":
    sys.exit(main())
