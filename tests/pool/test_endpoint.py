"""Folders, paths and locks behind an endpoint."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.endpoint import (
    MAX_PORT,
    MAX_SOCKET_PATH,
    EndpointTaken,
    check_endpoint,
    default_endpoint,
    lock_endpoint,
    place_of,
    private_dir,
    runtime_dir,
    socket_path,
    tcp_address,
)


def test_private_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    made = private_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_private_folder_that_is_one_already_is_fine(tmp_path: Path) -> None:
    assert private_dir(private_dir(tmp_path / "a")) == tmp_path / "a"


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o755, 0o777])
def test_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(InvalidRequest, match=f"chmod 700 {folder}") as caught:
        private_dir(folder)
    assert (caught.value.parameter, caught.value.value) == ("endpoint", str(folder))


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Somebody else may have laid it in a folder that all may write to."""
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InvalidRequest, match="not a folder of this user"):
        private_dir(tmp_path / "link")


def test_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InvalidRequest):
        private_dir(tmp_path / "a")


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InvalidRequest):
        private_dir(tmp_path / "a" / "b")


def test_runtime_folder_is_below_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_dir() == tmp_path / "vllmport"
    assert stat.S_IMODE((tmp_path / "vllmport").stat().st_mode) == 0o700


def test_default_endpoint_is_the_environments_else_in_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("VLLMPORT_ENDPOINT", raising=False)
    assert default_endpoint() == f"ipc://{tmp_path}/vllmport/pool.sock"
    monkeypatch.setenv("VLLMPORT_ENDPOINT", "ipc:///elsewhere")
    assert default_endpoint() == "ipc:///elsewhere"


def test_path_of_an_endpoint() -> None:
    assert socket_path("ipc:///run/pool.sock") == Path("/run/pool.sock")


@pytest.mark.parametrize(
    "endpoint", ["", "/run/x", "ipc://", "ipc://x", "tcp://h:1", "ipc:///" + "é" * 60]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        socket_path(endpoint)
    assert (caught.value.parameter, caught.value.value) == ("endpoint", endpoint)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://10.0.0.7:5555", ("10.0.0.7", 5555)),
        ("tcp://gpu.example:1", ("gpu.example", 1)),
        ("tcp://[::1]:65535", ("::1", MAX_PORT)),
        ("tcp://*:80", ("*", 80)),
    ],
)
def test_address_of_an_endpoint(endpoint: str, address: tuple[str, int]) -> None:
    check_endpoint(endpoint)
    assert tcp_address(endpoint) == address


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://", "tcp://h", "tcp://:1", "tcp://h:", "tcp://h:x", "tcp://h:0", "tcp://h:65536"],
)
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_endpoint(endpoint)
    assert (caught.value.parameter, caught.value.value) == ("endpoint", endpoint)


def test_each_address_has_a_lock_of_its_own(tmp_path: Path) -> None:
    assert place_of("ipc:///run/pool.sock", tmp_path) == Path("/run/pool.sock")
    endpoints = ("tcp://10.0.0.7:5555", "tcp://10.0.0.7:5556", "tcp://[::1]:5555", "tcp://*:5555")
    places = {place_of(endpoint, tmp_path) for endpoint in endpoints}
    assert len(places) == 4
    assert {place.parent for place in places} == {tmp_path}


def test_longest_path_that_the_kernel_takes_is_taken(tmp_path: Path) -> None:
    path = "/" + "x" * (MAX_SOCKET_PATH - 1)
    assert socket_path(f"ipc://{path}") == Path(path)
    with pytest.raises(InvalidRequest, match=str(MAX_SOCKET_PATH)):
        socket_path(f"ipc://{path}x")
    with socket.socket(socket.AF_UNIX) as own, pytest.raises(FileNotFoundError):
        own.connect("/" + "x/" * ((MAX_SOCKET_PATH - 1) // 2))


def test_lock_is_held_by_one_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    first = lock_endpoint(path, 0)
    with pytest.raises(EndpointTaken, match=str(path)):
        lock_endpoint(path, 0)
    copy = os.dup(first)
    os.close(first)
    with pytest.raises(EndpointTaken):
        lock_endpoint(path, 0)
    os.close(copy)
    os.close(lock_endpoint(path, 0))


def test_lock_removes_a_socket_that_was_left(tmp_path: Path) -> None:
    path = tmp_path / "pool.sock"
    path.touch()
    os.close(lock_endpoint(path, 0))
    assert not path.exists()


def test_lock_is_for_this_user_and_not_inherited(tmp_path: Path) -> None:
    fd = lock_endpoint(tmp_path / "pool.sock", 0)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_lock_waits_for_the_one_before_to_clean_up(tmp_path: Path) -> None:
    """The last owner removes the file while it holds it: the next must not lock the old file."""
    path = tmp_path / "pool.sock"
    first = lock_endpoint(path, 0)

    def leave() -> None:
        os.unlink(f"{path}.lock")
        os.close(first)

    timer = threading.Timer(0.1, leave)
    timer.start()
    second = lock_endpoint(path, 10)
    assert os.path.samestat(os.fstat(second), os.stat(f"{path}.lock"))
    os.close(second)
    timer.join()
