"""A process that has the command line imported and forks for each command: a start at the price of a fork.

Run as `python -m tests.security.forking_cli`; reads a list of commands a line on standard input and answers it on
standard output, both as JSON. Each command is a process of its own, with its own session, environment, folder and exit
code, as `python -m sidecar` would be; only the imports before the fork are shared. gRPC is not: it takes no fork well.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
from typing import Any, NoReturn

import sidecar.cli
import sidecar.config
import sidecar.ops.edge
import sidecar.ws.edge

assert "grpc" not in sys.modules

LIFE_S = 20


def run(commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run commands at the same time, each to its end."""
    return [ended(pid) for pid in [begun(command) for command in commands]]


def begun(command: dict[str, Any]) -> int:
    """The process of one command."""
    pid = os.fork()
    if pid == 0:
        become(command)
    return pid


def ended(pid: int) -> dict[str, Any]:
    """How it ended, and whether anything of its session lives on."""
    _, status = os.waitpid(pid, 0)
    survived = True
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        survived = False
    return {"code": os.waitstatus_to_exitcode(status), "survived": survived}


def become(command: dict[str, Any]) -> NoReturn:
    """In the child: be `python -m sidecar` with these arguments."""
    os.setsid()
    signal.alarm(LIFE_S)  # one that serves after all would be waited for in vain
    os.chdir(command["folder"])
    os.environ.clear()
    for name, value in command["environment"].items():
        os.environb[name.encode()] = value.encode("utf-8", "surrogateescape")
    for number, path in ((0, os.devnull), (1, command["out"]), (2, command["err"])):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
    sys.argv = ["sidecar", *command["arguments"]]
    try:
        sidecar.cli.main(prog_name="sidecar")
    except SystemExit as ending:
        code = ending.code
    else:
        code = None
    # As the interpreter would end, but for taking itself apart, which costs more than all else here.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    assert len(os.listdir("/proc/self/task")) == 1
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
