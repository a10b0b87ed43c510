"""The finished, validated plan a supervisor is handed: plain data, plain types.

Pure, and free of the libraries that check configuration, so that the supervisor stays small.
`config.py` makes plans; the supervisor only reads them.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vllmport.bridge.timeouts import Timeouts

TINY_MODEL = "tiny"
"""Names the bundled demonstration model."""

ECHO_MODEL = "echo"
"""Names the engine without a model."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A named engine specification; each replica of it is one worker.

    Attributes:
        name: What callers call it.
        model: A folder, a hub name, or "echo"; aliases are resolved.
        engine: "vllm" or "echo".
        v1_multiprocessing: "auto", "on" or "off".
        env: Environment of its workers, on top of the supervisor's.
        replicas: How many workers.
        loras: Adapters that calls may name: name → folder.
        engine_args: Arguments of the engine itself.
        notes: What was changed in them, for people.
    """

    name: str
    model: str
    engine: str = "vllm"
    v1_multiprocessing: str = "auto"
    env: dict[str, str] = field(default_factory=dict)
    replicas: int = 1
    loras: dict[str, str] = field(default_factory=dict)
    engine_args: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def for_worker(self) -> dict[str, Any]:
        """Return what a worker has to know to build the engine."""
        return {
            "model": self.model,
            "engine": self.engine,
            "v1_multiprocessing": self.v1_multiprocessing,
            "engine_args": self.engine_args,
            "loras": self.loras,
        }


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the supervisor is. Seconds, counts and bytes.

    Attributes:
        max_queue: Calls that may wait for one model.
        max_queue_bytes: Bytes of arguments that may wait for one model.
        max_client_bytes: Bytes that may wait for one client that does not read.
        drain_timeout: How long open calls may go on when a worker or the pool stops.
        stop_timeout: How long stopping a worker that holds no call may take before it is killed.
        load_stall_timeout: How long a worker that loads may neither report, nor compute, nor move
            data before it counts as hung; 0 for no limit.
        load_timeout: How long a worker may load at all; 0 for as long as it gets on.
        stall_timeout: How long a worker may owe something and neither step nor compute before it
            counts as hung.
        abort_grace: How long after an abort a worker may still hold the call before it is replaced.
        max_loads: Workers that may load at once; one on each GPU in any case.
        memory_timeout: How long the memory of a dead worker may take to come back before its GPU
            is put in quarantine, and how long a start waits for memory that others hold.
        backoff_initial: Pause before the second restart in a row; it doubles from there.
        backoff_max: The longest pause.
        max_restarts: Deaths within `restart_window` after which a worker is given up.
        restart_window: Over how long deaths are counted.
        stable_after: How long a worker has to be READY for its earlier deaths to be forgotten.
        fail_fast_after: Deaths in a row after which calls are refused until a worker is READY.
        standby: Whether to keep a process at hand that has imported the engine already.
        standby_delay: How long after a model is READY its standby is started.
        standby_memory: Bytes that must be free for that.
        recycle_age: Age at which a worker is replaced; 0 for never, as below.
        recycle_calls: Calls after which a worker is replaced.
        recycle_rss: Bytes of memory of its whole group at which a worker is replaced.
        recycle_gpu_memory: Bytes on all GPUs that its whole group uses at which it is replaced.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # read by config.py, never changed

    max_queue: int = 4096
    max_queue_bytes: int = 256 * 2**20
    max_client_bytes: int = 64 * 2**20
    drain_timeout: float = 30.0
    stop_timeout: float = 10.0
    load_stall_timeout: float = 300.0
    load_timeout: float = 0.0
    stall_timeout: float = 30.0
    abort_grace: float = 10.0
    max_loads: int = 4
    memory_timeout: float = 30.0
    backoff_initial: float = 0.5
    backoff_max: float = 30.0
    max_restarts: int = 5
    restart_window: float = 120.0
    stable_after: float = 60.0
    fail_fast_after: int = 3
    standby: bool = True
    standby_delay: float = 5.0
    standby_memory: int = 4 * 2**30
    recycle_age: float = 0.0
    recycle_calls: int = 0
    recycle_rss: int = 0
    recycle_gpu_memory: int = 0


@dataclass(frozen=True, slots=True)
class Security:
    """What a pool needs to listen on TCP.

    Attributes:
        secret_key: The pool's own, in Z85.
        clients: The file of the keys that may come in.
    """

    secret_key: str = field(repr=False)
    clients: str


@dataclass(frozen=True, slots=True)
class Universal:
    """What universal calls may do on each worker: `[universal]`.

    Attributes:
        modules: Further modules that they may reach, besides the documented API of vLLM.
        max_refs: Objects that one session may hold.
        max_sessions: Sessions at one time; each has a thread.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # read by config.py, never changed

    modules: tuple[str, ...] = ()
    max_refs: int = 100_000
    max_sessions: int = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one supervisor needs to know.

    Attributes:
        endpoint: Where clients connect: `ipc://PATH` or `tcp://HOST:PORT`.
        run_dir: A private folder of this run; removed with it.
        log_dir: Where the workers' stderr goes, a file each.
        python: Interpreter of the workers.
        models: What to start at once, and to keep whoever leaves.
        aliases: Name of a model or tokenizer as callers write it → folder or hub name.
        policy: Limits and patience.
        config: The file this was made of, if any, and a digest of what it said: `path`, `digest`.
        log_level: Of the supervisor, and of vLLM unless its own variable says otherwise.
        process_group_kill: Whether workers may rely on their group being killed with them.
        universal: What universal calls may do.
        timeouts: What clients are told of time-outs, as `Timeouts.to_wire` makes it.
        owner_pid: The process this pool dies with; 0 for a service.
        security: Keys, where it listens on TCP.
    """

    endpoint: str
    run_dir: str
    log_dir: str
    python: str
    models: tuple[ModelSpec, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    universal: Universal = field(default_factory=Universal)
    timeouts: dict[str, Any] = field(default_factory=lambda: Timeouts().to_wire())
    config: dict[str, str] = field(default_factory=dict)
    log_level: str = "info"
    process_group_kill: bool = True
    owner_pid: int = 0
    security: Security | None = None

    def to_json(self) -> str:
        """Write the plan down for the supervisor's start."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read back what `to_json` wrote."""
        data = json.loads(text)
        data["models"] = tuple(
            ModelSpec(**{**model, "notes": tuple(model["notes"])}) for model in data["models"]
        )
        data["policy"] = Policy(**data["policy"])
        universal = data["universal"]
        data["universal"] = Universal(**{**universal, "modules": tuple(universal["modules"])})
        if data["security"] is not None:
            data["security"] = Security(**data["security"])
        return cls(**data)
