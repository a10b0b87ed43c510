"""Kills what a cell names, and judges what follows: what is left, who was told what, who serves.

Judges by what `oracle.py` sees and the callers say; what is right is in `cells.py`.
"""

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.caller_process import CallerLost
from chaos.cells import DONE, ENGINES, VICTIMS, Cell, Engine, Expectation, expectation
from chaos.oracle import Line, Oracle, Process, Survivor, wait_state
from chaos.session import OpenCall, Session, order_for

PROMISE: Final = 2.0
"""Seconds within which nothing is left."""

PATIENCE: Final = 5 * PROMISE
"""What is left after this long has survived."""

GRACE: Final = 60.0
"""Seconds that being clean may take where open calls are let finish."""

NAMES: Final = {"EngineCore": "VLLM::EngineCor", "TP worker": "VLLM::Worker_TP"}
"""Victim → its name in /proc, where the kernel keeps 15 bytes."""

RETRYABLE: Final = frozenset({"worker_lost", "engine_dead", "pool_lost"})


@dataclass(slots=True)
class Result:
    """What one cell showed.

    Attributes:
        clean: Seconds from the signal until all that had to go was gone; None if it stayed.
        service: Seconds from the signal to the next right answer; None if none was wanted or came.
        errors: How the calls that were open ended: what → end.
        problems: What was not as it had to be; empty if all was.
        survivors: What had to be gone and was not.
        files: Sockets, files and shared memory that were left.
        log: The last lines that the pool logged, where something was wrong.
        limit: Whether all that is wrong is the known limit.
    """

    cell: Cell
    clean: float | None = None
    service: float | None = None
    errors: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    survivors: list[Survivor] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    limit: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        plain = {name: getattr(self, name) for name in ("clean", "service", "errors", "problems")}
        survivors = [survivor.to_json() for survivor in self.survivors]
        rest = {"survivors": survivors, "files": self.files, "log": self.log, "limit": self.limit}
        return {**self.cell._asdict(), **plain, **rest}


class Strike:
    """One kill in a session, and what follows.

    Args:
        session: Where the moment has been arranged.
        oracle: Sees what is left.
        result: Names the cell, and gets what it shows.
        keep: Leave survivors alone, for somebody else to find.
        patience: Seconds after which what is left has survived.
    """

    def __init__(
        self, session: Session, oracle: Oracle, result: Result, *, keep: bool, patience: float
    ) -> None:
        self._session = session
        self._oracle = oracle
        self._cell = cell = result.cell
        self._engine: Engine = ENGINES[cell.engine]
        self._wanted: Expectation = expectation(cell)
        self._keep = keep
        self._patience = patience
        self._result = result

    def run(self) -> None:
        """Send the signal, and look at everything that follows.

        Raises:
            CallerLost: There is no such victim, or the pool does not answer.
        """
        wanted, result = self._wanted, self._result
        known = self._session.known
        victims = self._victims(known)
        if self._cell.moment in ("import", "load"):
            self._oracle.note_segments()
        doomed = self._doomed(victims, known, self._oracle.below())
        self._check_calls_are_open()
        begun = time.monotonic()
        send(victims, self._cell.signal)
        serving = self._ask_for_service() if wanted.service else 0
        left = self._oracle.wait_gone(doomed, GRACE if wanted.graceful else self._patience)
        if left:
            made = {known["supervisor"], known["spawner"], *known["workers"]}
            result.survivors = self._oracle.describe(left, made)
            result.problems.append(f"{len(left)} survived")
            if not self._keep:
                self._oracle.kill(left)
        else:
            result.clean = time.monotonic() - begun
        for call in self._session.calls:
            if call.caller.alive:  # one that was killed has nobody to ask
                self._judge_call(call)
        if wanted.service:
            self._judge_service(serving, begun)
            self._judge_zombies()

    # Who is killed, and who has to go.

    def _victims(self, known: Mapping[str, Any]) -> list[int]:
        """Return the pids to signal, in order; an engine's process is waited for."""
        session = self._session
        pids = {"owner": session.owner.pid, "client": session.client.pid, **known}
        pids["worker"] = known["workers"][0] if known["workers"] else 0
        names = VICTIMS[self._cell.victim]
        if names[0] in NAMES:
            return [self._engine_process(NAMES[names[0]])]
        found = [int(pids[name]) for name in names]
        if not all(found):
            raise CallerLost(f"not there: {dict(zip(names, found, strict=True))}")
        return found

    def _check_calls_are_open(self) -> None:
        for call in self._session.calls:
            if any("end" in line for line in call.caller.lines(call.order)):
                raise CallerLost(f"{call.name} was over before the signal")

    def _engine_process(self, name: str) -> int:
        found = eventually(
            lambda: [p.pid for p, line in self._oracle.below().items() if line.name == name],
            self._engine.patience,
        )
        if not found:
            raise CallerLost(f"no process is called {name}")
        return int(min(found))

    def _doomed(
        self, victims: Collection[int], known: Mapping[str, Any], below: Mapping[Process, Line]
    ) -> set[Process]:
        """Return who has to go, of those who are there now."""
        kind = self._wanted.doomed
        if kind in ("victim", "nothing"):
            return {p for p in below if kind == "victim" and p.pid in victims}
        staying = {self._session.owner.pid, self._session.client.pid} - set(victims)
        if kind in ("workers", "spawner"):
            staying.add(known["supervisor"])
        if kind == "workers":
            staying.add(known["spawner"])
            if self._engine.spares:
                return {p for p, line in below.items() if line.session in known["workers"]}
        return {process for process in below if process.pid not in staying}

    # What follows.

    def _ask_for_service(self) -> int:
        order = order_for(self._engine, self._cell.moment)
        return self._session.owner.order("serve", **order)

    def _judge_call(self, call: OpenCall) -> None:
        """Check that a call ended once, and as it had to."""
        wanted = self._wanted.running if call.runs else self._wanted.waiting
        problems = self._result.problems
        try:
            said = call.caller.hear(call.order, "end", self._engine.patience)
        except CallerLost:
            problems.append(f"{call.name} did not end")
            return
        end = self._result.errors[call.name] = said["end"]
        lines = call.caller.lines(call.order)
        if sum("end" in line for line in lines) != 1:
            problems.append(f"{call.name} ended more than once")
        problems += [f"{call.name}: {line['problem']}" for line in lines if "problem" in line]
        if end not in wanted:
            text = said.get("text", "")
            problems.append(f"{call.name} ended with {end}, not {' or '.join(wanted)}: {text}")
        if end in RETRYABLE and not said["retryable"]:
            problems.append(f"{call.name} ended with {end} that is not to be retried")
        if end in DONE:
            self._judge_answer(call, said)

    def _judge_answer(self, call: OpenCall, said: Mapping[str, Any]) -> None:
        right = {"tokens": self._engine.tokens, "answer": self._engine.answer}
        for key in right.keys() & said.keys():
            if said[key] != right[key]:
                self._result.problems.append(f"{call.name} gave {key}={said[key]!r}")

    def _judge_service(self, order: int, begun: float) -> None:
        try:
            said = self._session.owner.hear(order, "end", 2 * self._engine.patience)
        except CallerLost:
            said = {"end": "nothing"}
        if said.get("answer") == self._engine.answer:
            self._result.service = said["heard"] - begun
            self._session.loaded = True
        else:
            self._result.problems.append(f"no service: {said}")
        refused = [error for error in said.get("errors", ()) if "not to be retried" in error]
        if refused and self._cell.moment != "draining":  # an unloading model may be refused
            self._result.problems.append(f"calls were refused meanwhile: {refused}")

    def _judge_zombies(self) -> None:
        """Look for children that supervisor and spawner have not collected."""
        known = self._session.status()
        parents = (known["supervisor"], known["spawner"])
        if not eventually(lambda: not self._oracle.zombies_of(parents), PROMISE):
            self._result.problems.append("zombies were not collected")


def send(pids: Collection[int], name: str) -> None:
    """Send all of them a signal as if in one instant: KILL finds those who cannot act any more.

    Raises:
        CallerLost: One of them is gone.
    """
    if name == "KILL" and len(pids) > 1:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            wait_state(pid, "TtZX")
    for pid in pids:
        try:
            os.kill(pid, signal.Signals[f"SIG{name}"])
        except ProcessLookupError:
            raise CallerLost(f"process {pid} went by itself") from None


def eventually(condition: Callable[[], Any], patience: float) -> Any:
    """Return the condition's value once it is true, or what it is when patience is over."""
    end = time.monotonic() + patience
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return value
