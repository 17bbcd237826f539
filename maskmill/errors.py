"""One kind of error for what a user can mend, and its way out of a script: one line, exit code 2."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable

_code: int | None = None  # of a script that has ended: how it leaves


class UserError(Exception):
    """Bad input. The message is one line: the file, row or key, what was expected, what came, what to do."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a ``UserError`` becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    global _code
    code = 0
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        code = 130
    if main.__module__ == "__main__":
        _code = code
    if code:
        sys.exit(code)


@atexit.register
def _leave() -> None:
    """Leave at once where a script has ended: Python would take apart the half a million objects of torch, diffusers
    and transformers first, which takes three seconds. Registered before theirs, it runs after what they registered."""
    if _code is None:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return  # nobody reads it any more; Python says so
    os._exit(_code)
