"""Stage processes forked from one that has imported their libraries already: what ``python`` is to dvc in the test of a
whole run, most of which would otherwise be spent on imports.

    python tests/warm.py serve SOCKET              imports, then answers until it is ended
    python tests/warm.py ask SOCKET stages/x.py    runs the script there, as ``python stages/x.py`` would here

A stage still is a process of its own, with the command line, folder, environment and streams of the one that asks.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

IMPORTED = ["maskmill.diffusion.passes", "maskmill.zeroshot", "maskmill.report.plots", "maskmill.report.grids",
            "maskmill.masks.rivals", "maskmill.scores.runs", "maskmill.training", "maskmill.segmenters.pairs",
            "maskmill.pretraining.vae"]  # fmt: skip


def start(folder: Path, env: dict[str, str]) -> subprocess.Popen | None:
    """Serve from now on, and write ``folder/python``, which asks; None where the system cannot."""
    if not sys.platform.startswith("linux"):
        return None
    asking = folder / "python"
    asking.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISs "{__file__}" ask "{folder}/socket" "$@"\n')
    asking.chmod(0o755)
    process = subprocess.Popen([sys.executable, __file__, "serve", str(folder / "socket")], env=env)
    while not (folder / "socket").exists() and process.poll() is None:
        time.sleep(0.01)
    return process


def serve(place: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place)
        server.listen()  # who asks during the imports waits
        for name in IMPORTED:
            importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # answered calls leave no zombies
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
                os._exit(0)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run what one ``ask`` sent; -> its exit code on the connection."""
    message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
    argv, folder, environment = json.loads(message)
    stage = os.fork()
    if stage == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
        code = 1
        try:
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    connection.send(str(status if status >= 0 else 128 - status).encode())


def ask(place: str, *argv: str) -> None:
    if not argv or not argv[0].startswith("stages/"):
        os.execv(sys.executable, [sys.executable, *argv])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(place)
        message = json.dumps([argv, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(connection, [message], [0, 1, 2])
        sys.exit(int(connection.recv(16) or b"1"))


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
