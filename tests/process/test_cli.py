"""The command: what it prints, where, and its exit status."""

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import (
    PATIENCE,
    entries,
    eventually,
    program,
    serving,
    unfinished,
    vllmport,
    worker_of,
    worker_pid,
)
from vllmport.pool import Pool

POOL_TOML = """
[models.main]
model = "nick"
step_delay = 0.001

[models.second]
model = "echo"
replicas = 2

[aliases]
nick = "echo"

[policy]
max_queue = 100
"""


@pytest.fixture(scope="module")
def served(
    runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory, _module_leaves_nothing: None
) -> Iterator[str]:
    """The endpoint of a service with a configuration file."""
    config = tmp_path_factory.mktemp("config") / "pool.toml"
    config.write_text(POOL_TOML)
    endpoint = f"ipc://{runtime_dir / 'cli.sock'}"
    with serving(endpoint, str(config)):
        assert vllmport("status", "--endpoint", endpoint, "--wait").returncode == 0
        yield endpoint


def test_generate_prints_the_answer_and_nothing_else(served: str) -> None:
    done = vllmport("generate", "--endpoint", served, "--model", "main", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")


def test_generate_takes_sampling_parameters(served: str) -> None:
    options = ("--max-tokens", "3", "--temperature", "0.5")
    done = vllmport("generate", "--endpoint", served, "--model", "main", *options, "Hello")
    assert done.stdout == "Hel\n"


def test_chat_answers_one_message(served: str) -> None:
    done = vllmport("chat", "--endpoint", served, "--model", "main", "Hello")
    assert (done.returncode, done.stdout) == (0, "Hello\n")


def test_chat_answers_the_lines_of_a_pipe_and_remembers_them(served: str) -> None:
    done = vllmport(
        "chat", "--endpoint", served, "--model", "main", "--system", "S", stdin="one\n\ntwo\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "S\none\nS\none\nS\none\ntwo\n"


def test_status_as_json_is_the_documented_map(served: str) -> None:
    done = vllmport("status", "--endpoint", served, "--json")
    assert done.returncode == 0
    status = json.loads(done.stdout)
    assert status["supervisor"]["pid"] > 0
    assert status["spawner"]["pid"] > 0
    assert [(m["name"], m["queued"]) for m in status["models"]] == [("main", 0), ("second", 0)]
    assert [worker["id"] for worker in status["workers"]] == ["main/0", "second/0", "second/1"]
    for worker in status["workers"]:
        assert worker.keys() >= {
            *("id", "model", "pid", "pgid", "state", "in_flight"),
            *("unfinished", "restarts", "last_exit", "mode"),
        }
        assert (worker["state"], worker["mode"], worker["restarts"]) == ("READY", "echo", 0)


def test_status_for_people_names_every_worker(served: str) -> None:
    done = vllmport("status", "--endpoint", served)
    assert done.returncode == 0
    for part in (served, "main/0", "second/0", "second/1", "READY"):
        assert part in done.stdout


def test_call_that_fails_exits_with_1_and_one_line(served: str) -> None:
    done = vllmport("generate", "--endpoint", served, "--model", "other", "Hello")
    assert done.returncode == 1
    assert re.fullmatch(r"vllmport: .*'other'.*\n", done.stderr)


def test_service_that_cannot_begin_leaves_nothing(runtime_dir: Path) -> None:
    before = entries(runtime_dir)
    done = vllmport("serve", "--endpoint", "tcp://nowhere")
    assert done.returncode != 0
    assert "tcp://nowhere" in done.stderr
    assert entries(runtime_dir) == before


def test_model_must_be_named_where_there_are_two(served: str) -> None:
    done = vllmport("generate", "--endpoint", served, "Hello")
    assert done.returncode == 1
    assert "--model" in done.stderr
    assert "main, second" in done.stderr


@pytest.mark.parametrize(
    "args",
    [("dance",), ("generate",), ("generate", "a", "--max-tokens", "0"), ("serve", "/no/such")],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(args: tuple[str, ...]) -> None:
    done = vllmport(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["status", "stop", "generate"])
def test_no_pool_exits_with_3(endpoint: str, command: str) -> None:
    done = vllmport(command, "--endpoint", endpoint, *(["Hello"] if command == "generate" else []))
    assert done.returncode == 3
    assert endpoint in done.stderr
    assert "vllmport serve" in done.stderr


def test_deadline_exits_with_4(served: str) -> None:
    options = ("--max-tokens", "60000", "--timeout", "0.2", "--model", "second")
    done = vllmport("generate", "--endpoint", served, *options, "x" * 60_000)
    assert done.returncode == 4
    assert "deadline" in done.stderr


def test_interrupt_exits_with_130_and_cancels(served: str) -> None:
    args = ("--endpoint", served, "--model", "main", "--max-tokens", "60000", "x" * 60_000)
    with program(*_command("generate", *args)) as running, Pool.connect(served) as pool:
        eventually(lambda: unfinished(pool) == 1)
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 130
        eventually(lambda: unfinished(pool) == 0)


def test_worker_that_cannot_start_exits_with_5(endpoint: str, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text('[models.broken]\nmodel = "echo"\nfail_load = "no such thing"\n')
    with serving(endpoint, str(config)):
        done = vllmport("status", "--endpoint", endpoint, "--wait")
        assert done.returncode == 5
        assert "FAILED" in done.stdout
        assert "no such thing" in done.stdout
        asked = vllmport("generate", "--endpoint", endpoint, "Hello")
        assert asked.returncode == 5
        assert "no such thing" in asked.stderr


def test_status_waits_until_everything_is_ready(endpoint: str, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text('[models.slow]\nmodel = "echo"\nload_delay = 1.5\n')
    with serving(endpoint, str(config)):
        now = vllmport("status", "--endpoint", endpoint, "--json")
        assert json.loads(now.stdout)["workers"][0]["state"] in ("STARTING", "LOADING")
        early = vllmport("status", "--endpoint", endpoint, "--wait", "--timeout", "0.1")
        assert early.returncode == 4
        waited = vllmport("status", "--endpoint", endpoint, "--wait", "--json")
        assert json.loads(waited.stdout)["workers"][0]["state"] == "READY"


@pytest.mark.parametrize("options", [[], ["--now"]], ids=["drain", "now"])
def test_stop_ends_the_service(endpoint: str, options: list[str]) -> None:
    with serving(endpoint, "--model", "echo") as server:
        assert vllmport("stop", "--endpoint", endpoint, *options).returncode == 0
        assert server.wait(PATIENCE) == 0
    assert vllmport("status", "--endpoint", endpoint).returncode == 3


def test_log_lines_name_model_worker_and_process(endpoint: str) -> None:
    with serving(endpoint, "--model", "echo") as server:
        with Pool.connect(endpoint) as pool:
            eventually(lambda: worker_of(pool)["state"] == "READY")
            pid = worker_pid(pool)
        server.terminate()
        _, log = server.communicate(timeout=PATIENCE)
    fields = f"worker=echo/0 pid={pid}"
    for event in ("spawned", "registered", "ready", "draining", "exited", "cleared"):
        assert f"INFO worker.{event} {fields}" in log
    assert "cause=exited with status 0 expected=True" in log


def test_unknown_key_of_a_configuration_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text("[policy]\nmax_queu = 3\n")
    done = vllmport("serve", str(config))
    assert done.returncode == 1
    assert "max_queu" in done.stderr
    assert "did you mean 'max_queue'" in done.stderr
    assert "Traceback" not in done.stderr


def test_configuration_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text("models = [")
    done = vllmport("serve", str(config))
    assert done.returncode == 1
    assert f"{config} is not TOML" in done.stderr


def test_service_without_a_model_says_that_it_is_a_demonstration(endpoint: str) -> None:
    """The engine of the bundled model takes long to load: that is not waited for."""
    with serving(endpoint) as server:
        with Pool.connect(endpoint) as pool:
            assert [model["name"] for model in pool.status()["models"]] == ["tiny"]
        assert vllmport("stop", "--endpoint", endpoint, "--now").returncode == 0
        _, log = server.communicate(timeout=PATIENCE)
    assert "DEMONSTRATION" in log


def test_version_and_help() -> None:
    assert re.search(r"\d+\.\d+", vllmport("--version").stdout)
    done = vllmport("--help")
    assert done.returncode == 0
    for command in ("serve", "generate", "chat", "status", "stop"):
        assert command in done.stdout


def _command(*args: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "vllmport.pool.cli", *args)


def test_a_file_that_has_changed_since_is_told_of(endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('[models.echo]\nmodel = "echo"\n')
    with serving(endpoint, str(path)):
        assert "restart needed" not in vllmport("status", "--endpoint", endpoint).stdout
        path.write_text('[models.echo]\nmodel = "echo"\nreplicas = 2\n')
        said = " ".join(vllmport("status", "--endpoint", endpoint).stdout.split())
        assert "has changed since: restart needed" in said


@pytest.mark.parametrize(
    "model",
    [
        'model = "m"\nhf_token = "hf_SECRET"\nhf_tokn = "hf_SECRET"\nenv = {A = "hf_SECRET"}',
        'model = "m"\n[models.a.enviroment]\nHF_TOKEN = "hf_SECRET"',
        'env = {HF_TOKEN = "hf_SECRET"}',
    ],
)
def test_the_command_tells_no_secret(tmp_path: Path, model: str) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(f"[models.a]\n{model}\n")
    for command in ("config", "show"), ("serve",):
        endpoint = () if command[0] == "config" else ("--endpoint", f"ipc://{tmp_path}/s")
        done = vllmport(*command, str(path), *endpoint)
        assert done.stdout + done.stderr
        assert "hf_SECRET" not in done.stdout + done.stderr


def test_options_and_environments_of_the_command(endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('log_level = "info"\n[environments.prod]\nlog_level = "error"\n')
    shown = vllmport("config", "show", str(path), "--environment", "prod").stdout
    assert "log_level = 'error'  # environments.prod" in shown
    assert "workers' python = " in shown
    options = ("--model", "echo", "-o", "replicas=2", "-o", "step_delay=0.001")
    with serving(endpoint, *options):
        found = json.loads(vllmport("status", "--endpoint", endpoint, "--json").stdout)
        (model,) = found["models"]
        assert (model["replicas"], model["engine_args"]) == (2, {"step_delay": 0.001})
    assert vllmport("serve", "-o", "replicas=2").returncode == 2
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[environments.prod.models.a]\nmodel = "m"\npreset = "throughputt"\n')
    for command in ("serve", ("config", "show")):
        done = vllmport(*([command] if isinstance(command, str) else command), str(wrong))
        assert done.returncode == 1
        assert "in [environments.prod]: [models.a] preset is one of throughput" in done.stderr
    said = vllmport("setup", "--engine", "cpu", "--dry-run").stdout
    assert "-m pip install torch==" in said
    assert "[cpu]" in said


@pytest.mark.slow
def test_workers_run_in_the_environment_that_setup_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLMPORT_VENV", str(tmp_path / "venv"))
    done = vllmport("setup", "--engine", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    with Pool() as pool, pool.llm("echo") as llm:
        assert llm.generate("abc", {"max_tokens": 1})[0].outputs[0].text == "a"
        command = psutil.Process(worker_pid(pool)).cmdline()
        assert command[0] == str(tmp_path / "venv" / "bin" / "python3")
        assert psutil.Process(pool.status()["supervisor"]["pid"]).cmdline()[0] == sys.executable


def test_restart_replaces_the_workers_and_events_tell_of_it(endpoint: str) -> None:
    with serving(endpoint, "--model", "echo"), Pool.connect(endpoint) as pool:
        eventually(lambda: worker_of(pool)["state"] == "READY")
        before = worker_pid(pool)
        done = vllmport("restart", "--endpoint", endpoint)
        assert (done.returncode, done.stdout) == (0, "echo: restarted\n")
        eventually(lambda: len(pool.status()["workers"]) == 1)
        assert worker_pid(pool) != before
        assert vllmport("restart", "nobody", "--endpoint", endpoint).returncode == 1
        told = vllmport("events", "--endpoint", endpoint, "--last", "1000", "--json", "--no-follow")
        names = [json.loads(line)["event"] for line in told.stdout.splitlines()]
        assert names[0] == "pool.started"
        assert names.count("worker.ready") == 2
        shown = vllmport("events", "--endpoint", endpoint, "--last", "1", "--no-follow")
        assert "client." in shown.stdout
