"""Processes of the package that start at once: forks of one that has imported it and done nothing else.

    python template.py serve SOCKET                  the process that is forked
    python -S template.py start SOCKET SCRIPT ...    ends when its fork has run SCRIPT on this process's own files

A comparison of versions wants dozens of interpreters, and importing PyTorch takes each of them two seconds.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys

FILES = 3  # input, output, errors


def start(path: str, *arguments: str) -> None:
    """Hand this process's files to a fork, and stay until it has ended."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps([os.getcwd(), *arguments]).encode()], range(FILES))
        connection.recv(1)


def serve(path: str) -> None:
    """Fork for everyone who asks, until killed."""
    import torch._dynamo  # noqa: F401  (what holds the functions of a process would import it in each fork)

    import pft_bench.harness.cases  # noqa: F401
    from pft_bench.harness.measure import timer

    timer.WARMUP_S /= 10  # each of dozens warms up
    gc.collect = lambda *_: 0  # a tenth of a second in a process with PyTorch, several times a case
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of a fork
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(connection, 1 << 16, FILES)
            if os.fork() == 0:
                listener.close()
                run(files, *json.loads(message))
            for file in (*files, connection.detach()):
                os.close(file)


def run(files: list[int], folder: str, script: str, *arguments: str) -> None:
    """What a new interpreter would do."""
    import runpy

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        os._exit(0)


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
