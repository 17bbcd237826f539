"""How scripts end: their exit code, all of their output, and at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from maskmill.errors import UserError, exit_cleanly

SCRIPT = """
import sys
from maskmill.errors import UserError, exit_cleanly
import atexit

class Slow:
    def __del__(self):
        print("taken apart", file=sys.stderr)

kept = Slow()
atexit.register(lambda: print("cleared away"))

def main():
    sys.stdout.write("done ")  # no end of line: it waits in the buffer
    {end}

exit_cleanly(main)
"""


@pytest.mark.parametrize("end, code, err", [
    ("", 0, ""), ("raise UserError('a.csv: no')", 2, "error: a.csv: no\n"),
    ("raise KeyboardInterrupt", 130, "interrupted; run the same command again to go on where it stopped\n"),
])  # fmt: skip
def test_a_script_leaves_with_its_code_and_all_it_said_but_takes_nothing_apart(end, code, err):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "done cleared away\n", err)


def test_an_error_of_ours_keeps_its_traceback_and_the_usual_end():
    script = SCRIPT.format(end="raise ValueError('x')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "done cleared away\n"
    assert "ValueError: x" in done.stderr and "taken apart" in done.stderr


def test_within_another_program_an_end_is_its_own(capsys):
    def wrong() -> None:
        raise UserError("a.csv: no")

    with pytest.raises(SystemExit, match="2"):
        exit_cleanly(wrong)
    assert capsys.readouterr().err == "error: a.csv: no\n"
    exit_cleanly(lambda: None)
    from maskmill import errors

    assert errors._code is None
