"""A process that has imported a module, and runs the module's `main` in a fork of itself for each check.

    python -m service.jobs.warm_process MODULE SOCKET LIMITS

Importing torch takes seconds, and a fork takes milliseconds. A fork has its own memory, and is killed when its check
takes too long. So a check that crashes, hangs or needs too much memory does not affect this process or other checks.

SOCKET: number of a file descriptor, which is one end of a socket pair. Each message on it is one byte with four file
descriptors: the stdin, stdout and stderr of a check, and one end of a new socket pair. On this new pair, the process
sends the exit status of the check as text. If its other end is closed before that, the process kills the check. If the
other end of SOCKET is closed, the process kills all checks and ends. LIMITS: the limits of each check, as JSON.

This process computes nothing itself, because the threads of a computation do not survive a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from vitfit.child import ASKED_BY, die_with_parent

from service.core.limits import Limits
from service.core.processes import signal_group

DESCRIPTORS = 4


class WarmProcess:
    """Forks a process for each check, and reports how it ended."""

    def __init__(self, control: socket.socket, check: Callable[[], object], limits: Limits) -> None:
        """Prepare the process.

        control: the socket with the requests. check: reads stdin and writes stdout. limits: those of each check.
        """
        self._control, self._check, self._limits = control, check, limits
        self._running: dict[int, socket.socket] = {}
        self._ended, self._on_child = socket.socketpair()
        for end in (self._ended, self._on_child):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._begin)
        self._selector.register(self._ended, selectors.EVENT_READ, self._report)

    def serve(self) -> None:
        """Run checks until the other end of the control socket is closed."""
        os.environ[ASKED_BY] = str(os.getpid())  # a check dies with this process
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, the signal would not wake the selector
        signal.set_wakeup_fd(self._on_child.fileno())
        try:
            while self._control.fileno() >= 0:
                for key, _ in self._selector.select():
                    key.data()
        finally:
            for pid in self._running:
                signal_group(pid, signal.SIGKILL)

    def _begin(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, DESCRIPTORS)
        if not message:
            self._control.close()
            return
        *streams, number = descriptors
        caller = socket.socket(fileno=number)
        pid = os.fork()
        if pid == 0:
            self._become_check(streams, caller)
        for stream in streams:
            os.close(stream)
        self._running[pid] = caller
        self._selector.register(caller, selectors.EVENT_READ, lambda: self._kill(pid))

    def _kill(self, pid: int) -> None:
        """Kill the check whose caller has closed its end."""
        if pid in self._running:
            self._selector.unregister(self._running[pid])
            signal_group(pid, signal.SIGKILL)

    def _report(self) -> None:
        """Report the exit status of each check that has ended. A negative status is the signal that killed it."""
        self._ended.recv(4096)
        for pid, caller in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                signal_group(pid, signal.SIGKILL)  # what the check has started ends with it
                if caller in self._selector.get_map():
                    self._selector.unregister(caller)
                del self._running[pid]
                with caller, contextlib.suppress(OSError):
                    caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())

    def _become_check(self, streams: Sequence[int], caller: socket.socket) -> NoReturn:
        """Run the check in this new process, and end it."""
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent()
            for held in (self._control, caller, *self._running.values()):
                held.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            self._limits.apply()
            self._check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def main() -> None:
    module, number, limits = sys.argv[1:]
    check = importlib.import_module(module).main
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # otherwise, each fork would write the same text again
    gc.collect()
    gc.freeze()  # a later collection in a fork would otherwise copy the pages of all objects
    WarmProcess(socket.socket(fileno=int(number)), check, Limits.from_json(json.loads(limits))).serve()


if __name__ == "__main__":
    main()
