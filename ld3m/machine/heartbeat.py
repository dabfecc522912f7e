"""Watching over each other: a process of a launch that dies or fails is named by the others, which stop too.

Collectives alone do not tell: some hang for ten minutes, some break with an address that says nothing to people.
"""

import itertools
import math
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

import torch.distributed as dist

from ld3m.errors import UserError, one_line

INTERVAL = 1.0
"""Seconds between signs of life."""
SILENCE = 20.0
"""Seconds without one after which a process is taken for dead; launchers kill what survives after 30."""
PATIENCE = 5.0
"""Seconds that a process has for saying itself why it fails, once another has failed."""

_count = itertools.count()


class Heartbeat:
    """A thread that shows this process alive to the one before it, and sees whether the one after it is.

    They meet at the store of the launch's rendezvous. Each watches one other, so that many cost no more than few; who
    finds one silent says so to all. Entered and left by all processes in the same order: who is done waits for the
    others, since process 0 takes the store with it.
    """

    def __init__(self, rank: int, processes: int) -> None:
        self.rank = rank
        self.processes = processes
        self.neighbour = (rank + 1) % processes
        store = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore(f"ld3m-heartbeat-{next(_count)}", store)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self.store.set(f"host-{self.rank}", socket.gethostname())
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            if _of_a_collective(error):  # most likely another's fault: the thread hears whose, and ends this process
                self.thread.join(SILENCE + 2 * PATIENCE)
            reason = error.lines[0] if isinstance(error, UserError) else one_line(error)
            self._accuse(f"process {self.rank} of {self.processes} on {socket.gethostname()} failed: {reason}")
            time.sleep(2 * INTERVAL)  # for the others to read it
        else:
            self._wait_for_all(math.inf if error is None else SILENCE)  # a signal may have come to one process only
        self.ended.set()
        self.thread.join()

    def _wait_for_all(self, seconds: float) -> None:
        """Waits until all are done, still watching; if one of them never is, the thread ends this process."""
        until = time.monotonic() + seconds
        with suppress(dist.DistError):  # process 0 saw before us that all are done
            self.store.add("done", 1)
            while self.store.add("done", 0) < self.processes and time.monotonic() < until:
                time.sleep(INTERVAL / 20)

    def _watch(self) -> None:
        seen, at = 0, time.monotonic()
        while not self.ended.wait(INTERVAL):
            try:
                self.store.add(f"alive-{self.rank}", 1)
                if (signs := self.store.add(f"alive-{self.neighbour}", 0)) != seen:
                    seen, at = signs, time.monotonic()
                elif time.monotonic() - at > SILENCE:
                    self._accuse(f"process {self.neighbour} of {self.processes} on {self._host()} has died")
                verdict = self.store.get("verdict").decode() if self.store.check(["verdict"]) else None
            except dist.DistError:
                verdict = "process 0, where the others meet, has died"
            if verdict:
                self._stop(verdict)

    def _host(self) -> str:
        key = f"host-{self.neighbour}"
        return self.store.get(key).decode() if self.store.check([key]) else "an unknown host"

    def _accuse(self, verdict: str) -> None:
        """Says to all whose fault it is; the first verdict stands."""
        try:
            self.store.compare_set("verdict", "", verdict)
        except dist.DistError:
            return  # the store has gone, and with it the others

    def _stop(self, verdict: str) -> None:
        """Ends this process wherever it is, unless it is about to end by itself."""
        if not self.ended.wait(PATIENCE):
            print(f"ld3m: {verdict}; this is process {self.rank}, which stops too", file=sys.stderr, flush=True)
            print("ld3m: the same command resumes from what was saved", file=sys.stderr, flush=True)
            os._exit(1)


def _of_a_collective(error: Exception) -> bool:
    """Whether an error is a broken connection's, which gloo gives no type."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
