"""`python -m graft`: the same as the command `graft`."""

import sys

from graft.app import main

if __name__ == "__main__":
    sys.exit(main())
