"""The `vllmport` command: serve a pool, ask it, look at it.

Exit status: 0 done; 1 the call failed; 2 wrong usage; 3 no pool answers; 4 the deadline passed;
5 a worker did not start; 6 the endpoint is taken; 7 what a host said is no protocol;
130 interrupted.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from vllmport.bridge.errors import (
    ConnectFailed,
    DeadlineExceeded,
    InvalidRequest,
    PoolLost,
    ProtocolError,
    StartupFailed,
    VllmportError,
)
from vllmport.bridge.events import line
from vllmport.pool import cli_config
from vllmport.pool.client.llm import LLM
from vllmport.pool.client.pool import Pool, announce_demonstration
from vllmport.pool.client.stream import Stream
from vllmport.pool.endpoint import default_endpoint, runtime_dir

EXIT_STATUS: dict[type[VllmportError], int] = {
    ConnectFailed: 3,
    PoolLost: 3,
    DeadlineExceeded: 4,
    StartupFailed: 5,
    ProtocolError: 7,
}

Command = Callable[..., Any]

_endpoint = click.option(
    "--endpoint",
    help="ipc://PATH or tcp://HOST:PORT of the pool; else VLLMPORT_ENDPOINT, else the user's "
    "runtime folder.",
)


def _sampling(command: Command) -> Command:
    """Add the options of a call."""
    for option in (
        _endpoint,
        click.option(
            "--model", help="Name of the model; may be left out if the pool has only one."
        ),
        click.option("--max-tokens", type=click.IntRange(1), default=256, show_default=True),
        click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True),
        click.option("--timeout", type=float, help="Seconds for each answer; 600 if left out."),
    ):
        command = option(command)
    return command


@click.group(help=__doc__)
@click.version_option(package_name="vllmport")
def cli() -> None:
    """Hold the commands together."""


@cli.command()
@click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--endpoint", help="ipc://PATH or tcp://HOST:PORT to listen on, instead of the configured one."
)
@click.option(
    "--model", "models", multiple=True, help="A model to start; may be given several times."
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For these models: preset, replicas, max_model_len, …; may be given several times.",
)
@click.option("--environment", help="dev, test, prod, or a name in the file.")
def serve(
    config: Path | None,
    endpoint: str | None,
    models: tuple[str, ...],
    options: tuple[str, ...],
    environment: str | None,
) -> None:
    """Run a pool until SIGTERM; CONFIG is a pool.toml. A second SIGTERM stops it at once."""
    from vllmport.pool.client.launch import new_run_dir
    from vllmport.pool.config import load_config
    from vllmport.pool.config_models import local

    given = cli_config.engine_options(options)
    if given and not models:
        raise click.UsageError("--option needs --model")
    here = Path.cwd()  # paths in the file count from its folder
    named = {name: {"model": local(name, here), **given} for name in models}
    overrides: dict[str, Any] = {"models": named}
    overrides |= {"endpoint": endpoint} if endpoint else {}
    overrides |= {"environment": environment} if environment else {}
    settings = load_config(config, overrides)
    if not settings.models:
        announce_demonstration()
        settings = load_config(settings, {"models": {"tiny": {"model": "tiny"}}})
    settings.endpoint = settings.endpoint or default_endpoint()
    settings.log_dir = settings.log_dir or _state_dir() / "logs"
    run_dir = new_run_dir()
    try:
        plan = settings.to_plan(run_dir)
    except BaseException:
        shutil.rmtree(run_dir)
        raise
    fd = os.memfd_create("plan", 0)  # inherited; a plan may hold secrets, so no file
    os.write(fd, plan.to_json().encode())
    os.lseek(fd, 0, os.SEEK_SET)
    command = [sys.executable, "-m", "vllmport.pool.supervisor", "--plan-fd", str(fd)]
    os.execv(sys.executable, command)  # noqa: S606  # the process becomes the supervisor


@cli.command()
@click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--connect", metavar="ENDPOINT", help="Join the pool at this endpoint; start none.")
def port(config: Path | None, connect: str | None) -> None:
    """Serve the program that started this one, over stdin and stdout, until it goes.

    The messages are those of bridge/PROTOCOL.md, as packets of its section 15. CONFIG is the
    pool.toml of a pool that ends with that program.
    """
    from vllmport.pool.port import run_port

    if config is not None and connect is not None:
        raise click.UsageError("a pool that is joined takes no configuration")
    if os.isatty(0) or os.isatty(1):
        raise click.UsageError("a port speaks to a program, not to a terminal")
    run_port(config, connect)


@cli.command()
@click.argument("prompt")
@_sampling
def generate(
    prompt: str, endpoint: str | None, model: str | None, timeout: float | None, **params: Any
) -> None:
    """Complete PROMPT and print it as it comes."""
    with _attached(endpoint, model) as llm:
        _print(llm.stream(prompt, params, timeout=timeout))


@cli.command()
@click.argument("message", required=False)
@click.option("--system", help="A system message to begin with.")
@_sampling
def chat(
    message: str | None,
    system: str | None,
    endpoint: str | None,
    model: str | None,
    timeout: float | None,
    **params: Any,
) -> None:
    """Answer MESSAGE, or talk: one line, one answer, until end of file."""
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with _attached(endpoint, model) as llm:
        for line in [message] if message else _lines():
            messages.append({"role": "user", "content": line})
            answer = _print(llm.stream_chat(messages, params, timeout=timeout))
            messages.append({"role": "assistant", "content": answer})


@cli.command()
@_endpoint
@click.option("--json", "as_json", is_flag=True, help="Print the whole status as JSON.")
@click.option("--wait", is_flag=True, help="Wait until every worker is READY, or one has FAILED.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds to wait.")
def status(endpoint: str | None, as_json: bool, wait: bool, timeout: float) -> None:  # noqa: FBT001
    """Show the pool's models and workers."""
    end = time.monotonic() + timeout
    with Pool.connect(endpoint) as pool:
        found = pool.status()
        while wait and not _settled(found):
            if time.monotonic() > end:
                raise DeadlineExceeded(f"not every worker was READY within {timeout:g} s")
            time.sleep(0.2)
            found = pool.status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    failed = [worker for worker in found["workers"] if worker["state"] == "FAILED"]
    if failed:
        sys.exit(EXIT_STATUS[StartupFailed])


@cli.command()
@_endpoint
@click.option("--now", is_flag=True, help="Do not wait for open calls.")
def stop(endpoint: str | None, now: bool) -> None:  # noqa: FBT001
    """Stop the pool: open calls are finished first, for a while."""
    with Pool.connect(endpoint) as pool:
        pool.call("shutdown", {"drain": not now})


@cli.command()
@click.argument("name", required=False)
@_endpoint
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds to wait.")
def restart(name: str | None, endpoint: str | None, timeout: float) -> None:
    """Replace the workers of the model NAME, or of all, one after the other; calls go on."""
    with Pool.connect(endpoint) as pool:
        for model in [name] if name else [model["name"] for model in pool.status()["models"]]:
            pool.restart(model, timeout=timeout)
            click.echo(f"{model}: restarted")


@cli.command()
@_endpoint
@click.option("--last", type=click.IntRange(0), default=20, show_default=True, help="Begin with.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@click.option("--no-follow", is_flag=True, help="Print what was and leave.")
def events(endpoint: str | None, last: int, as_json: bool, no_follow: bool) -> None:  # noqa: FBT001
    """Show what happened in the pool, and what happens, until interrupted."""
    with Pool.connect(endpoint) as pool, pool.events(last=last) as stream:
        while True:
            try:
                event = stream.get(0.5 if no_follow else None)
            except TimeoutError:
                return
            if event is None:
                return
            click.echo(json.dumps(event) if as_json else _event_line(event))


def _event_line(event: dict[str, Any]) -> str:
    stamp = datetime.fromtimestamp(event["time"]).astimezone().isoformat(" ", "milliseconds")
    return f"{stamp} {line(event)}"


@cli.command()
@click.argument(
    "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@_endpoint
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(config: Path | None, endpoint: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Look at all that a pool needs; CONFIG is its pool.toml. The status is 1 if anything fails."""
    from vllmport.pool.config import load_config
    from vllmport.pool.doctor.examine import examine

    settings = load_config(config, {})
    found = []
    for finding in examine(settings.interpreter().python, endpoint or settings.endpoint):
        found.append(finding)
        if not as_json:
            click.echo(f"{finding.level:5} {finding.name:16} {finding.text}")
            if finding.remedy:
                click.echo(f"{'':22} → {finding.remedy}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    if any(finding.level == "fail" for finding in found):
        sys.exit(1)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
def keygen(file: Path) -> None:
    """Write a new key pair to FILE, for a pool that listens on TCP or a client of one.

    Prints the public key. Clients find theirs by VLLMPORT_KEY, and the pool's by
    VLLMPORT_SERVER_KEY.
    """
    from vllmport.pool.keys import make_pair

    click.echo(make_pair(file).public)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of what was found.")
def reap(dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
    """End what killed pools left. A pool that lives is never touched, nor what may belong to one.

    Every pool does so when it starts; this is for a machine where none is going to.
    """
    from vllmport.pool.reap import reap as run

    found = run(runtime_dir(), dry_run=dry_run)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            click.echo(finding)


cli.add_command(cli_config.config)
cli.add_command(cli_config.setup)


@contextmanager
def _attached(endpoint: str | None, name: str | None) -> Iterator[LLM]:
    with Pool.connect(endpoint) as pool:
        names = [model["name"] for model in pool.status()["models"]]
        if name is None and len(names) != 1:
            known = ", ".join(names) or "none"
            raise InvalidRequest.of("model", None, f"say which --model; this pool has: {known}")
        with pool.llm(name=name or names[0]) as llm:
            yield llm


def _print(stream: Stream) -> str:
    with stream:
        parts = []
        for delta in stream:
            parts.append(delta.text)
            click.echo(delta.text, nl=False)
        click.echo()
    return "".join(parts)


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _settled(found: dict[str, Any]) -> bool:
    states = {worker["state"] for worker in found["workers"]}
    return "FAILED" in states or states == {"READY"}


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    supervisor = found["supervisor"]
    console = Console()
    console.print(
        f"pool at {supervisor['endpoint']}, supervisor {supervisor['pid']}, "
        f"{supervisor['clients']} clients"
    )
    if _has_changed(supervisor["config"]):
        console.print(f"{supervisor['config']['path']} has changed since: restart needed")
    table = Table(
        "worker", "state", "mode", "pid", "in flight", "restarts", "last exit", "note", box=None
    )
    for worker in found["workers"]:
        note = (worker["error"] or worker["stage"] or "").splitlines()[:1]
        row = (
            worker[key]
            for key in ("id", "state", "mode", "pid", "in_flight", "restarts", "last_exit")
        )
        table.add_row(*("" if cell is None else str(cell) for cell in row), *(note or [""]))
    console.print(table)
    for model in found["models"]:
        console.print(
            f"model {model['name']}: {model['state']}, {model['queued']} queued, "
            f"{model['leases']} leases"
        )


def _has_changed(config: dict[str, str]) -> bool:
    """Tell whether the file that a pool was started from says something else by now."""
    from vllmport.pool.config import digest

    return bool(config) and digest(Path(config["path"])) != config["digest"]


def _state_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "vllmport"


def main() -> None:
    """Run the command; every error is one clear line and an exit status."""
    if sys.platform != "linux":
        sys.stderr.write(
            "vllmport: Linux only: it rests on pidfds, subreapers and process groups\n"
        )
        sys.exit(1)
    try:
        cli(standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except VllmportError as exc:
        sys.stderr.write(f"vllmport: {exc}\n")
        sys.exit(next((code for cls, code in EXIT_STATUS.items() if isinstance(exc, cls)), 1))


if __name__ == "__main__":
    main()
