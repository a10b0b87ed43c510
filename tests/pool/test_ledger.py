"""What a run writes down, who may read it as over, and what a sweep makes of it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from processes import SLACK, full_disk
from vllmport.pool.ledger import Entry, Ledger, ledgers, read_ledger
from vllmport.pool.marks import COUNTER_BITS, run_of
from vllmport.pool.processes import started_at
from vllmport.pool.reap import sweep


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run-a").mkdir()
    return tmp_path


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    ledger = Ledger(str(folder / "run-a"), f"ipc://{folder}/pool.sock", 0)
    yield ledger
    with suppress(OSError):
        os.close(ledger.fileno())


def entry_of(path: Path) -> Entry:
    with read_ledger(path) as entry:
        return entry


def append(ledger: Ledger, text: bytes) -> None:
    os.pwrite(ledger.fileno(), text, ledger.path.stat().st_size)


def test_ledger_knows_a_worker_before_it_is_started(ledger: Ledger, folder: Path) -> None:
    mark, scratch = ledger.intend("m/0", {"TMPDIR": str(folder)})
    (path,) = ledgers(folder)
    entry = entry_of(path)
    assert entry.run == ledger.run == run_of(mark)
    assert entry.scratches == [scratch]
    assert scratch.name == f"vllmport-{mark}"
    assert (entry.run_dir, entry.endpoint) == (str(folder / "run-a"), f"ipc://{folder}/pool.sock")
    assert entry.workers == []
    ledger.spawned("m/0", os.getpid())
    assert entry_of(path).workers == [(os.getpid(), started_at(os.getpid()))]


def test_marks_of_a_run_differ(ledger: Ledger) -> None:
    assert len({ledger.intend("m/0", {})[0] for _ in range(50)}) == 50


def test_marks_that_come_again_are_those_of_nobody(ledger: Ledger) -> None:
    first, _ = ledger.intend("lives", {})
    marks = []
    for number in range(1 << COUNTER_BITS):
        marks.append(ledger.intend(str(number), {})[0])
        ledger.cleared(str(number))
    assert first not in marks
    assert len(set(marks)) == len(marks) - 2, "all others were given, and two of them again"


def test_ledger_forgets_the_folder_of_a_worker_of_which_nothing_is_left(ledger: Ledger) -> None:
    _, scratch = ledger.intend("m/0", {})
    ledger.intend("m/1", {})
    ledger.cleared("m/1")
    ledger.cleared("was never given a mark")
    assert ledger.scratches == [scratch]


def test_ledger_on_a_full_disk_says_so(ledger: Ledger) -> None:
    with full_disk(ledger.fileno()), pytest.raises(OSError, match="No space left"):
        ledger.intend("m/0", {})
    assert ledger.scratches == []
    _, scratch = ledger.intend("m/1", {})
    assert entry_of(ledger.path).scratches == [scratch]


def test_line_after_a_torn_one_is_whole(ledger: Ledger) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ledger.path.stat().st_size + 10, hard))
        with pytest.raises(OSError, match="No space left"):
            ledger.intend("m/0", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    _, scratch = ledger.intend("m/1", {})
    assert entry_of(ledger.path).scratches == [scratch]


def test_run_lives_while_anybody_holds_its_ledger(ledger: Ledger) -> None:
    copy = os.dup(ledger.fileno())  # as the spawner has
    os.close(ledger.fileno())
    assert entry_of(ledger.path).lives
    os.close(copy)
    assert not entry_of(ledger.path).lives


def test_torn_last_line_does_no_harm(ledger: Ledger) -> None:
    append(ledger, b'{"worker": "m/0", "mar')
    assert entry_of(ledger.path).run == ledger.run


def test_ledger_of_many_starts_stays_small_and_knows_who_lives(ledger: Ledger) -> None:
    lives = [ledger.intend(f"lives {number}", {})[1] for number in range(5)]
    for number in range(10_000):
        ledger.intend(str(number), {"TMPDIR": "/tmp" if number % 2 else "/" + "\1" * 50})
        ledger.spawned(str(number), os.getpid())
        ledger.cleared(str(number))
        ledger.spawner(os.getpid())
    assert ledger.path.stat().st_size < 8192
    assert set(lives) <= set(entry_of(ledger.path).scratches)


STARTS_FOR_EVER = """
import os, sys
from vllmport.pool.ledger import Ledger

ledger = Ledger(sys.argv[1], "ipc:///nowhere", 0)
names = [str(number) for number in range(8)]
while True:
    for name in names:
        ledger.cleared(name)
        mark, _ = ledger.intend(name, {"TMPDIR": "/tmp"})
        os.write(1, f"{name} {mark}\\n".encode())  # as the spawner is asked: after it was written
        ledger.spawned(name, os.getpid())
"""


def test_kill_at_any_moment_takes_no_worker_that_lives_out_of_the_ledger(tmp_path: Path) -> None:
    for attempt in range(15):
        run_dir = tmp_path / f"run-{attempt}"
        command = [sys.executable, "-c", STARTS_FOR_EVER, str(run_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [next(process.stdout) for _ in range(100 + attempt)]
            process.kill()
            said += process.stdout.readlines()
        known = {path.name for path in entry_of(Path(f"{run_dir}.ledger")).scratches}
        # Eight take turns: the one whose turn it is may be cleared and not yet written down anew.
        assert {f"vllmport-{line.split()[1]}" for line in said[-7:]} <= known


def test_pids_of_another_boot_are_nobody(ledger: Ledger) -> None:
    ledger.spawned("m/0", os.getpid())
    first, *rest = ledger.path.read_text().splitlines()
    other = json.dumps({**json.loads(first), "boot": "another"})
    ledger.path.write_text("\n".join([other, *rest]))
    assert entry_of(ledger.path).workers == []


def test_sweep_removes_what_a_dead_run_left(ledger: Ledger, folder: Path) -> None:
    _, scratch = ledger.intend("m/0", {"TMPDIR": str(folder)})
    scratch.mkdir()
    (folder / "pool.sock").touch()
    (folder / "pool.sock.lock").touch()
    os.close(ledger.fileno())
    would = sweep(folder, dry_run=True)
    assert {finding.outcome for finding in would} == {"would be removed"}
    found = sweep(folder)
    left = {str(folder / name) for name in ("run-a", "pool.sock", "pool.sock.lock")}
    assert {f.what for f in found} == {f.what for f in would} == {*left, str(scratch)}
    assert list(folder.iterdir()) == []
    assert sweep(folder) == []


def test_sweep_does_not_touch_a_run_that_lives(ledger: Ledger, folder: Path) -> None:
    before = set(folder.iterdir())
    assert sweep(folder) == []
    assert set(folder.iterdir()) == before


def test_sweep_leaves_a_socket_that_another_pool_has_by_now(ledger: Ledger, folder: Path) -> None:
    from vllmport.pool.endpoint import lock_endpoint

    os.close(ledger.fileno())
    fd = lock_endpoint(folder / "pool.sock", 0)
    (folder / "pool.sock").touch()
    try:
        assert [finding.what for finding in sweep(folder)] == [str(folder / "run-a")]
        assert (folder / "pool.sock").exists()
    finally:
        os.close(fd)


def test_sweep_removes_no_folder_that_is_not_beside_the_ledger(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    (elsewhere / "run-b").mkdir(parents=True)
    ledger = Ledger(str(elsewhere / "run-b"), f"ipc://{folder}/pool.sock", 0)
    os.close(ledger.fileno())
    shutil.move(ledger.path, folder / "moved.ledger")
    assert sweep(folder) == []
    assert (elsewhere / "run-b").exists()


def test_sweep_of_recorded_workers_kills_no_process_that_took_the_number(
    ledger: Ledger, folder: Path
) -> None:
    line = json.dumps({"worker": "m/0", "process": [os.getpid(), started_at(os.getpid()) - 1]})
    append(ledger, line.encode() + b"\n")
    os.close(ledger.fileno())
    sweep(folder)
    assert psutil.Process().is_running()
    assert ledgers(folder) == []


def test_empty_or_foreign_ledger_is_removed_without_harm(folder: Path) -> None:
    (folder / "x.ledger").write_text("")
    (folder / "y.ledger").write_text('not json\n[]\n{"run": 5}\n{"run": "5", "boot": 1}\n')
    assert sweep(folder) == []
    assert ledgers(folder) == []


def test_sweep_removes_the_folder_of_a_run_that_never_began(folder: Path) -> None:
    for name in ("run-old", "run-with-files"):
        (folder / name).mkdir()
    (folder / "run-with-files" / "x").touch()
    for name in ("run-old", "run-with-files"):
        os.utime(folder / name, (0, 0))
    assert sweep(folder, dry_run=True) == []
    assert (folder / "run-old").exists()
    sweep(folder)
    assert {path.name for path in folder.iterdir()} == {"run-a", "run-with-files"}


def test_sweep_without_ledgers_costs_nothing(folder: Path) -> None:
    start = time.perf_counter()
    assert sweep(folder) == []
    assert time.perf_counter() - start < 0.02 * SLACK
