"""A pool whose engine is killed; asked again until it answers as before. Driven by life.py.

Usage: mortal.py off|on no|standby
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.children import cpu_seconds, engine_of, resident_mb
from bench.peers.harness import serve
from bench.workload import ENGINE_ARGS, ENGINE_ENV, ONE_PARAMS, ONE_PROMPT

from vllmport.pool import Pool, SamplingParams, VllmportError

ONE = SamplingParams(**ONE_PARAMS)
PATIENCE = 90.0


class Mortal:
    """One pool with one worker."""

    def __init__(self, mode: str, standby: str) -> None:
        self._standby = standby == "standby"
        self._pool = Pool(policy={"standby": self._standby, "standby_delay": 0.1})
        args: dict[str, Any] = {**ENGINE_ARGS, "env": ENGINE_ENV}
        self._llm = self._pool.llm("tiny", v1_multiprocessing=mode, **args)
        self._mode = mode

    def first(self) -> str:
        """Return the first token."""
        return self._llm.generate(ONE_PROMPT, ONE, timeout=PATIENCE)[0].outputs[0].text

    def kill(self) -> float:
        """Kill the engine's process; return the seconds until the next right answer."""
        self._wait_for_standby()
        expected = self.first()
        pid = int(self._pool.status()["workers"][0]["pid"])
        victim = engine_of(pid) if self._mode == "on" else pid
        start = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while time.perf_counter() < start + PATIENCE:
            try:
                if self.first() == expected and self._was_replaced(pid):
                    return time.perf_counter() - start
            except VllmportError:
                time.sleep(0.01)
        raise TimeoutError("no answer came")

    def idle(self, seconds: float) -> dict[str, float]:
        """Return what the supervisor uses while nothing happens: share of a core, MB."""
        pid = int(self._pool.status()["supervisor"]["pid"])
        before = cpu_seconds([pid])
        time.sleep(seconds)
        return {"cpu": (cpu_seconds([pid]) - before) / seconds, "rss": resident_mb(pid)}

    def close(self) -> None:
        """End the pool."""
        self._pool.close()

    def _was_replaced(self, pid: int) -> bool:
        return bool(self._pool.status()["workers"][0]["pid"] != pid)

    def _wait_for_standby(self) -> None:
        end = time.monotonic() + PATIENCE
        while self._standby and not self._has_standby():
            if time.monotonic() > end:
                raise TimeoutError("no standby came up")
            time.sleep(0.1)

    def _has_standby(self) -> bool:
        standbys = self._pool.status()["standbys"]
        return any(standby["waiting"] for standby in standbys)


def make(mode: str, standby: str) -> dict[str, Callable[..., Any]]:
    """Return what can be asked."""
    mortal = Mortal(mode, standby)
    return {
        "first": mortal.first,
        "kill": mortal.kill,
        "idle": mortal.idle,
        "close": mortal.close,
    }


if __name__ == "__main__":
    serve(lambda: make(*sys.argv[1:]))
