"""One pool with an owner and a client, brought to the moment at which something is to be killed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from chaos.caller_process import CallerLost, CallerProcess
from chaos.cells import Engine
from chaos.oracle import Oracle

PATIENCE: Final = 10.0
"""Seconds a caller may take for what waits for no engine."""

CLOSING: Final = 60.0
"""Seconds an owner may take to close its pool."""

POLICY: Final = {
    "backoff_initial": 0.05,
    "backoff_max": 0.2,
    "max_restarts": 1_000_000,
    "fail_fast_after": 1_000_000,
    "standby_delay": 0.1,
}
"""Of every pool: one that is struck again and again does not give up."""

SETTLING: Final = 20.0
"""Seconds a pool may be busy after its model is ready."""

LOAD_DELAY: Final = 0.4
"""Seconds the echo engine loads where it is to be met there."""


class OpenCall(NamedTuple):
    """A call that is open when something is killed."""

    name: str
    caller: CallerProcess
    order: int

    @property
    def runs(self) -> bool:
        """Whether an engine works on it, rather than it waits for one."""
        return self.name.endswith("stream")


class Session:
    """A pool, its owner and a client.

    Args:
        oracle: Is told which children are collected here.
        folder: For the callers' log.
        env: On top of this process's environment.
        policy: On top of POLICY.

    Raises:
        CallerLost: The pool did not start.
    """

    def __init__(
        self,
        oracle: Oracle,
        folder: Path,
        env: Mapping[str, str],
        policy: Mapping[str, Any] | None = None,
    ) -> None:
        self._oracle = oracle
        self._env = {**os.environ, **env}
        self._log = folder / "callers.log"
        self.calls: list[OpenCall] = []
        self.known: dict[str, Any] = {}
        self.loaded = False
        self.owner = self._caller(json.dumps({**POLICY, **(policy or {})}))
        self._endpoint: str = self.owner.hear(0, "endpoint", PATIENCE)["endpoint"]
        self.client = self._join()

    def join_again(self) -> None:
        """Start another client where the last one was killed."""
        if not self.client.alive:
            self.client.leave(PATIENCE)
            self.client = self._join()

    def close(self) -> None:
        """End client and owner, and with it the pool."""
        self.client.leave(PATIENCE)
        self.owner.leave(CLOSING)

    def status(self) -> dict[str, Any]:
        """Return the pids of supervisor, spawner and workers.

        Raises:
            CallerLost: The pool does not say.
        """
        known = self.owner.do("status", PATIENCE)
        self._must(known)
        return known

    def arrange(self, engine: Engine, moment: str) -> None:
        """Bring the pool to a moment, with a call of the owner and one of the client open.

        Who is there then is `known`; streams go on while this is found out, and end, so it is
        found out before them.

        Raises:
            CallerLost: It did not come there.
        """
        self.calls = []
        order = order_for(engine, moment)
        if moment in ("import", "load"):
            self._arrange_load(engine, moment, order)
            self.known = self.status()
            return
        if not self.loaded:
            self._must(self.owner.do("load", engine.patience, **order))
            self.loaded = True
        if engine.spares:  # let the process at hand get ready
            self._oracle.wait_quiet(SETTLING)
        self._oracle.note_segments()
        self.known = self.status()
        if moment == "idle":
            return
        for name, caller in (("owner", self.owner), ("client", self.client)):
            self._open(f"{name}'s stream", caller, "stream", order)
        for call in self.calls:
            call.caller.hear(call.order, "first", engine.patience)
        if moment == "draining":
            self._open("unload", self.owner, "unload", order)
            self._until({"state": "DRAINING"}, engine)
            self.loaded = False

    def _arrange_load(self, engine: Engine, moment: str, order: Mapping[str, Any]) -> None:
        if self.loaded:
            self._must(self.owner.do("unload", engine.patience, **order))
            self.loaded = False
        self._open("load", self.owner, "load", order)
        self._open("client's question", self.client, "ask", order)
        self.client.hear(self.calls[-1].order, "sent", engine.patience)
        loading = {"state": "LOADING", "stage": "loading"}
        self._until(engine.importing if moment == "import" else loading, engine)

    def _until(self, wanted: Mapping[str, str], engine: Engine) -> None:
        said = self.owner.do("until", 2 * engine.patience, within=engine.patience, **wanted)
        if not said["there"]:
            raise CallerLost(f"wanted a worker that is {dict(wanted)}, found {said}")

    def _open(self, name: str, caller: CallerProcess, do: str, order: Mapping[str, Any]) -> None:
        self.calls.append(OpenCall(name, caller, caller.order(do, **order)))

    def _must(self, said: Mapping[str, Any]) -> None:
        if said["end"] != "done":
            raise CallerLost(f"ended with {said}")

    def _join(self) -> CallerProcess:
        client = self._caller("join", self._endpoint)
        client.hear(0, "endpoint", PATIENCE)
        return client

    def _caller(self, *arguments: str) -> CallerProcess:
        return CallerProcess(self._oracle, *arguments, env=self._env, log=self._log)


def order_for(engine: Engine, moment: str) -> dict[str, Any]:
    """Return what every order about this engine says."""
    load = dict(engine.load)
    if load["model"] == "echo" and moment == "load":
        load["load_delay"] = LOAD_DELAY
    return {
        "name": "victim",
        "load": load,
        "tokens": engine.tokens,
        "prompt": engine.prompt,
        "question": engine.question,
        "within": engine.patience,
    }
