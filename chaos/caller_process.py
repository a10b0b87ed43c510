"""The harness's end of a caller: starts the program, gives it orders, hears what comes of them."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chaos.oracle import Oracle

ROOT = Path(__file__).resolve().parent.parent


class CallerLost(RuntimeError):
    """Raised when a caller does not say what it has to."""


class CallerProcess:
    """A running caller.

    Args:
        oracle: Is told that this child is collected here.
        arguments: What the program gets: a policy as JSON, or `join ENDPOINT`.
        env: Its whole environment.
    """

    def __init__(self, oracle: Oracle, *arguments: str, env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.caller", *arguments],
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        oracle.adopt(self._process.pid)
        self.pid = self._process.pid
        self._said: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._orders = 0
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def order(self, do: str, **arguments: Any) -> int:
        """Give an order and return its number; nothing is waited for."""
        self._orders += 1
        line = json.dumps({"order": self._orders, "do": do, **arguments})
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._orders

    def hear(self, order: int, key: str, patience: float) -> dict[str, Any]:
        """Wait for the line on an order that has this key.

        Raises:
            CallerLost: It did not come.
        """
        said = self._wait(lambda line: line["order"] == order and key in line, patience)
        if said is None:
            raise CallerLost(f"caller {self.pid}: no {key!r} of order {order} in {patience:g} s")
        return said

    def do(self, do: str, patience: float, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for its end.

        Raises:
            CallerLost: It did not come.
        """
        return self.hear(self.order(do, **arguments), "end", patience)

    def lines(self, order: int) -> list[dict[str, Any]]:
        """Return all that was said on an order."""
        with self._news:
            return [line for line in self._said if line["order"] == order]

    def leave(self, patience: float) -> None:
        """Let it end; kill it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            with self._news, contextlib.suppress(ValueError):  # half a line of one that was killed
                self._said.append({**json.loads(text), "heard": time.monotonic()})
                self._news.notify_all()

    def _wait(
        self, wanted: Callable[[dict[str, Any]], bool], patience: float
    ) -> dict[str, Any] | None:
        with self._news:
            self._news.wait_for(lambda: any(map(wanted, self._said)), patience)
            return next(filter(wanted, self._said), None)
