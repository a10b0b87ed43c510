"""What a worker writes to stderr is in a file, whatever becomes of the folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmport.pool.supervisor import stderr as stderr_module
from vllmport.pool.supervisor.stderr import KEEP_FILES, WorkerStderr


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr_module, "MAX_FILE", 10)


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[WorkerStderr]:
    stderr = WorkerStderr(str(tmp_path), "m/0")
    yield stderr
    stderr.handed_over()
    stderr.close()


def say(stderr: WorkerStderr, text: str) -> None:
    os.write(stderr.write_end, text.encode() + b"\n")
    assert stderr.read()


def test_older_files_are_kept_in_order(stderr: WorkerStderr) -> None:
    for number in range(KEEP_FILES + 3):
        say(stderr, f"line number {number}")
    names = [stderr.path, *(f"{stderr.path}.{index + 1}" for index in range(KEEP_FILES))]
    found = [Path(name).read_text() for name in names]
    assert found == [f"line number {KEEP_FILES + 2 - age}\n" for age in range(KEEP_FILES + 1)]


def test_files_that_somebody_removed_are_begun_again(stderr: WorkerStderr, tmp_path: Path) -> None:
    say(stderr, "line number 0")
    for path in tmp_path.iterdir():
        path.unlink()
    say(stderr, "line number 1")
    say(stderr, "line number 2")
    assert Path(stderr.path).read_text() == "line number 2\n"
    assert stderr.tail == [f"line number {number}" for number in range(3)]


def test_folder_that_somebody_removed_does_no_harm(stderr: WorkerStderr, tmp_path: Path) -> None:
    say(stderr, "line number 0")
    Path(stderr.path).unlink()
    tmp_path.rmdir()
    for number in range(1, 4):
        say(stderr, f"line number {number}")
    assert stderr.tail == [f"line number {number}" for number in range(4)]


def test_renamed_file_is_the_end_of_the_other(stderr: WorkerStderr, tmp_path: Path) -> None:
    other = WorkerStderr(str(tmp_path), "m/1")
    say(other, "the one before")
    other.handed_over()
    other.close()
    before = Path(stderr.path)
    say(stderr, "loads")
    stderr.rename("m/1")
    assert stderr.path == other.path
    assert Path(stderr.path).read_text() == "the one before\nloads\n"
    assert not before.exists()
    assert stderr.tail == ["loads"]
