"""A pool, as a Python caller sees it: started here and owned, or somebody else's and joined."""

import contextlib
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from vllmport.bridge.errors import VllmportError
from vllmport.pool.client.events import EventStream
from vllmport.pool.client.launch import OwnedSupervisor
from vllmport.pool.client.link import RECONNECT, Link
from vllmport.pool.client.llm import LLM, run_call
from vllmport.pool.client.requests import call_for
from vllmport.pool.endpoint import check_endpoint, default_endpoint
from vllmport.pool.keys import keys_for

if TYPE_CHECKING:
    from vllmport.pool.engine_args import EngineArgs

CONTROL_TIMEOUT = 60.0
"""Seconds for a call to the pool itself that waits for no engine."""

RESTART_TIMEOUT = 3600.0
"""Seconds for replacing all workers of a model."""


class Pool:
    """A pool that this process owns; it ends with it, however it ends.

    Args:
        config: Path of a `pool.toml`, a map of the same shape, or None.
        **overrides: Settings on top of it: `endpoint`, `aliases`, `models`, `python`, `policy`, …

    Raises:
        InvalidRequest: A setting is unknown or cannot work.
        StartupFailed: The supervisor did not start.
    """

    def __init__(self, config: Any = None, **overrides: Any) -> None:
        from vllmport.pool.config import load_config

        settings = load_config(config, overrides)
        supervisor = OwnedSupervisor(
            lambda run_dir: settings.to_plan(run_dir, owner_pid=os.getpid())
        )
        plan = supervisor.plan
        self.link = Link(plan.endpoint)
        self._finalizer = weakref.finalize(self, _shut, self.link, supervisor)
        _register(supervisor)

    @classmethod
    def connect(
        cls,
        endpoint: str | None = None,
        *,
        server_key: str | None = None,
        key: str | Path | None = None,
    ) -> Self:
        """Join a pool that runs already.

        Args:
            endpoint: Where; None for `VLLMPORT_ENDPOINT`, else the user's runtime folder.
            server_key: For `tcp://`: the pool's public key; None for `VLLMPORT_SERVER_KEY`.
            key: For `tcp://`: the file of one's own key pair, as `vllmport keygen` writes it; None
                for `VLLMPORT_KEY`.

        Raises:
            ConnectFailed: Nobody answers there.
            InvalidRequest: It is no endpoint, or a key is missing.
            PermissionDenied: The pool does not know the key, or is another one.
        """
        endpoint = endpoint or default_endpoint()
        check_endpoint(endpoint)
        self = cls.__new__(cls)
        self.link = Link(endpoint, RECONNECT, keys_for(endpoint, server_key, key))
        self.link.connection()
        self._finalizer = weakref.finalize(self, _shut, self.link, None)
        return self

    def __repr__(self) -> str:
        return f"<Pool {self.endpoint}{'' if self._finalizer.alive else ' closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """Where others can `Pool.connect` to this pool."""
        return self.link.endpoint

    @overload
    def llm(self, model: Literal["echo"], **options: Any) -> LLM: ...

    @overload
    def llm(
        self,
        model: str | None = None,
        *,
        name: str | None = None,
        v1_multiprocessing: str = "auto",
        env: Mapping[str, str] | None = None,
        replicas: int = 1,
        loras: Mapping[str, str] | None = None,
        preset: str | None = None,
        wait: bool = True,
        **engine_args: "Unpack[EngineArgs]",
    ) -> LLM: ...

    def llm(
        self,
        model: str | None = None,
        *,
        name: str | None = None,
        v1_multiprocessing: str = "auto",
        env: Mapping[str, str] | None = None,
        replicas: int = 1,
        loras: Mapping[str, str] | None = None,
        preset: str | None = None,
        wait: bool = True,
        **engine_args: Any,
    ) -> LLM:
        """Load a model, or attach to it where an equal specification runs already.

        Args:
            model: A folder, a hub name or an alias; "echo" for the engine without a model; None
                for the small bundled model, which is there to try things out.
            name: What to call it; the model as written if None. Alone, it attaches to the model
                that runs under this name, whatever its specification.
            v1_multiprocessing: "on": the engine in a process of its own; "off": in the worker;
                "auto": on where cleaning up after it is sure.
            env: Environment variables of its workers.
            replicas: How many workers share its calls.
            loras: Adapters that calls may name: name → folder.
            preset: "throughput", "latency" or "memory": engine arguments to start from.
            wait: Return only when all of them are ready.
            **engine_args: Arguments of the engine: `dtype`, `max_model_len`, …

        Returns:
            A handle with one lease on the model; the engine stops with the last lease.

        Raises:
            InvalidRequest: An argument is unknown or can never work, or another specification
                runs under this name.
            StartupFailed: A worker did not become ready.
        """
        if model is None and name is None:
            announce_demonstration()
        options = {
            "name": name,
            "v1_multiprocessing": v1_multiprocessing,
            "env": env,
            "replicas": replicas,
            "loras": loras,
            "preset": preset,
            "wait": wait,
        }
        return LLM.of(self, model, {**options, **engine_args})

    def unload(self, name: str, *, timeout: float = CONTROL_TIMEOUT) -> None:
        """Stop a model whoever holds a lease on it, and wait until it is gone.

        Raises:
            InvalidRequest: There is no such model.
            DeadlineExceeded: It is still busy; it stops all the same.
        """
        self.call("unload", {"name": name}, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """Return what runs: supervisor, spawner, models, workers, counters."""
        return dict(self.call("status", {}))

    def restart(self, name: str, *, timeout: float = RESTART_TIMEOUT) -> None:
        """Replace every worker of a model, one after the other, while calls go on.

        Where memory allows, the new worker is READY before the old one drains. Workers that were
        given up are started anew.

        Raises:
            InvalidRequest: There is no such model.
            StartupFailed: A new worker did not become ready; the old one goes on.
            DeadlineExceeded: It takes longer; it goes on all the same.
        """
        self.call("restart", {"name": name}, timeout=timeout)

    def events(self, *, last: int = 0) -> EventStream:
        """Watch what happens: processes, calls that were lost or run again, clients.

        Args:
            last: How many of the latest events to begin with; the pool keeps a thousand.

        Returns:
            An iterator of maps; `vllmport.bridge.events.EVENTS` lists names and fields.
        """
        return EventStream(self.link.connection(), last)

    def call(self, verb: str, args: dict[str, Any], *, timeout: float = CONTROL_TIMEOUT) -> Any:
        """Call a verb of the pool itself and return its plain result."""
        return run_call(self.link.connection(), call_for("", verb, None, None), args, timeout)

    def close(self) -> None:
        """End an owned pool, and wait until nothing of it is left; leave one that was joined."""
        self._finalizer()


def announce_demonstration() -> None:
    """Say that what answers is no real model."""
    sys.stderr.write(
        "vllmport: no model was named, so this is the bundled DEMONSTRATION model: "
        "it knows sixteen capitals and little else\n"
    )


def _shut(link: Link, supervisor: OwnedSupervisor | None) -> None:
    if supervisor is not None and supervisor.pid != os.getpid():
        return  # a forked child: the pool is its parent's
    with contextlib.suppress(VllmportError):
        link.close()
    if supervisor is not None:
        supervisor.stop()


def _register(supervisor: OwnedSupervisor) -> None:
    """Have a forked child let go of the lifeline, so that it does not keep the pool alive."""
    reference = weakref.ref(supervisor)

    def in_child() -> None:
        owned = reference()
        if owned is not None:
            owned.drop_lifeline()

    os.register_at_fork(after_in_child=in_child)
