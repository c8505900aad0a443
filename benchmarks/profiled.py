"""Runs the sidecar with a sampling profiler: `python -m benchmarks.profiled OUTPUT serve --config FILE`.

SIGUSR1 starts it, SIGUSR2 ends it and writes the samples. On every few milliseconds of the process's CPU (ITIMER_PROF)
the main thread's Python stack is noted, weighed with the CPU that this thread took since the sample before; what the
process took beyond that is its other threads': gRPC's, and the store's. A signal is seen between bytecodes, so that
native code counts for the call that it was entered by. Imports the sidecar only to run it.
"""

from __future__ import annotations

import json
import linecache
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

INTERVAL_S = 0.002
Place = tuple[CodeType, int]


class Sampler:
    """Nanoseconds of CPU by stack: the code objects from the outermost in, with the instruction that each is at."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._stacks: Counter[tuple[Place, ...]] = Counter()
        self._other_threads_ns = 0
        self._thread_ns = self._process_ns = 0

    def start(self, *_: object) -> None:
        """Sample from now on."""
        self._thread_ns, self._process_ns = time.thread_time_ns(), time.process_time_ns()
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def sample(self, _: int, frame: FrameType | None) -> None:
        """Note where the main thread is."""
        thread_ns, process_ns = time.thread_time_ns(), time.process_time_ns()
        stack = []
        while frame is not None:
            stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        own = thread_ns - self._thread_ns
        self._stacks[tuple(reversed(stack))] += own
        self._other_threads_ns += max(0, process_ns - self._process_ns - own)
        self._thread_ns, self._process_ns = thread_ns, process_ns

    def stop(self, *_: object) -> None:
        """Sample no more, and write what there is; the file appears whole."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        stacks = [{"ns": ns, "frames": [_described(*place) for place in stack]} for stack, ns in self._stacks.items()]
        partial = self._output.with_suffix(".partial")
        partial.write_text(json.dumps({"other_threads_ns": self._other_threads_ns, "stacks": stacks}))
        partial.rename(self._output)


def _described(code: CodeType, instruction: int) -> dict[str, Any]:
    """The function, and the source of the expression that it is at: of a call, which."""
    return {"file": code.co_filename, "function": code.co_qualname, "at": _expression(code, instruction)}


def _expression(code: CodeType, instruction: int) -> str:
    positions = list(code.co_positions())
    line, end_line, start, end = positions[instruction // 2] if instruction >= 0 else (None,) * 4
    if line is None or line != end_line:
        return ""
    # The columns count bytes of UTF-8.
    return linecache.getline(code.co_filename, line).encode()[start:end].decode()


def main() -> None:
    """Take the output's path off the command line, and be the sidecar."""
    sampler = Sampler(Path(sys.argv.pop(1)))
    signal.signal(signal.SIGUSR1, sampler.start)
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.signal(signal.SIGUSR2, sampler.stop)

    from sidecar.cli import main as sidecar

    sidecar()


if __name__ == "__main__":
    main()
