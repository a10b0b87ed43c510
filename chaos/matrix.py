"""Runs cells one after another: a pool for each, or one for several where a start takes long."""

import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chaos.caller_process import CallerLost
from chaos.cells import ENGINES, Cell, expectation, is_beyond_reach
from chaos.oracle import Oracle, Process
from chaos.session import Session
from chaos.strike import PATIENCE, Result, Strike

SEAMS: Final = Path(__file__).resolve().parent / "seams"
SLOW_IMPORT: Final = 0.4
"""Seconds an echo worker waits before it does anything, where it is to be met there."""

LAST_WORDS: Final = 25
"""Lines of a log that tell what went wrong."""

STALL_TIMEOUT: Final = 4.0
"""Seconds after which a hang is one, where something is made to hang."""


class Matrix:
    """The pools that are struck.

    Args:
        folder: The run's own; all files of the pools go there.
        blunt: Take the spawner the means to kill, to see whether that is noticed.
        reuse: Strike a pool again and again for as long as it lives, whatever its engine.
        patience: Seconds after which what is left has survived.
    """

    def __init__(
        self,
        folder: Path,
        *,
        blunt: bool = False,
        reuse: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # ABRT is meant to kill, not to write
        self._folder = folder
        runtime, scratch = folder / "run", folder / "tmp"
        for path in (runtime, scratch):
            path.mkdir(mode=0o700)
        self.oracle = Oracle(runtime, scratch)
        sources = os.pathsep.join([str(SEAMS), os.environ.get("PYTHONPATH", "")])
        self._env = {
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_STATE_HOME": str(folder / "state"),
            "TMPDIR": str(scratch),
            "PYTHONPATH": sources.rstrip(os.pathsep),
            "CHAOS_BLUNT": "1" if blunt else "",
        }
        self._reuse, self._patience = reuse, patience
        self._session: Session | None = None
        self._kind = ("", False, False)

    def run(self, cells: Iterable[Cell]) -> Iterator[Result]:
        """Run cells, and yield what each showed."""
        for cell in cells:
            yield self.run_one(cell)
        self.close()

    def close(self) -> None:
        """End the pool that is still there."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def run_one(self, cell: Cell) -> Result:
        """Run one cell; one that could not be set up is red as well."""
        result = Result(cell)
        try:
            session = self.session_for(cell)
            session.arrange(ENGINES[cell.engine], cell.moment)
            keep = is_beyond_reach(cell)
            Strike(session, self.oracle, result, keep=keep, patience=self._patience).run()
        except CallerLost as exc:
            result.problems.append(f"no verdict: {exc}")
        if result.problems:
            result.log = self._last_words()
        if result.problems or not self._may_stay(cell):
            self._finish(result)
        return result

    def session_for(self, cell: Cell) -> Session:
        """Return the pool for a cell: the last one where that may be used again."""
        slow = cell.engine == "echo" and cell.moment == "import"
        kind = (cell.engine, cell.signal == "STOP", slow)
        if self._kind != kind:
            self.close()
        if self._session is None:
            env = {**self._env, "CHAOS_SLOW_IMPORT": str(SLOW_IMPORT) if slow else ""}
            policy = {"stall_timeout": STALL_TIMEOUT} if cell.signal == "STOP" else {}
            self._session = Session(self.oracle, self._folder, env, policy)
            self._kind = kind
        self._session.join_again()
        return self._session

    def _may_stay(self, cell: Cell) -> bool:
        shared = ENGINES[cell.engine].shared or (
            self._reuse and cell.moment not in ("import", "load")
        )
        return shared and expectation(cell).service

    def _last_words(self) -> list[str]:
        """Return the last lines of the newest supervisor's log."""
        logs = sorted(
            (self._folder / "run").rglob("supervisor.log"), key=lambda log: log.stat().st_mtime
        )
        return logs[-1].read_text().splitlines()[-LAST_WORDS:] if logs else []

    def _finish(self, result: Result) -> None:
        """Close the pool and look at what is left of it."""
        self.close()
        known = {Process(survivor.pid, survivor.ticks) for survivor in result.survivors}
        for process in self.oracle.wait_others_gone(known, self._patience):
            result.survivors += self.oracle.describe([process])
            result.problems.append("survived the pool")
        result.files = self.oracle.wait_clean(PATIENCE)
        if is_beyond_reach(result.cell) and (known or result.files):
            self._start_again(result, known)
        if result.files:
            result.problems.append(f"{len(result.files)} files left")
        self.oracle.kill(self.oracle.living())
        self.oracle.remove_files()

    def _start_again(self, result: Result, left: set[Process]) -> None:
        """Nobody was left to act; the next start has to, and where it does that is the limit."""
        session = Session(self.oracle, self._folder, self._env)
        still = self.oracle.wait_gone(left, PATIENCE)
        session.close()
        result.files = self.oracle.wait_clean(PATIENCE)
        out_of_reach = all(survivor.is_out_of_reach for survivor in result.survivors)
        if still:
            result.problems.append(f"{len(still)} survived the next start as well")
        elif left and out_of_reach and not result.files and len(result.problems) == 1:
            result.limit = True


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder for one run, with a path short enough for sockets, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder
