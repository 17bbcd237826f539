"""One kind of error for what a user can mend, and its way out of a script: one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: the file, row or key, what was expected, what came, what to do."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run ``main``; a ``UserError`` becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(130)
