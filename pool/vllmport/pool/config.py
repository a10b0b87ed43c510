"""Configuration: `pool.toml`, maps and keywords, checked by pydantic, made into a Plan.

The only file of the pool that knows pydantic; the supervisor gets the finished Plan.
"""

import difflib
import hashlib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.timeouts import LIBRARY_PROFILE, PROFILES, Timeouts
from vllmport.pool.config_models import local, specs_of
from vllmport.pool.endpoint import is_tcp, private_dir, socket_path, tcp_address
from vllmport.pool.interpreter import Interpreter, find_interpreter
from vllmport.pool.layers import Layers, is_secret
from vllmport.pool.plan import ECHO_MODEL, TINY_MODEL, ModelSpec, Plan, Policy, Security, Universal

ENVIRONMENTS = ("dev", "test", "prod")
"""Names of environments that need no section in the file."""

Seconds = Annotated[float, Field(gt=0)]

LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda level: level.lower() if isinstance(level, str) else level),
]
"""In small letters or, as vLLM writes them, in capitals."""


def tiny_model_path() -> str:
    """Return the folder of the bundled demonstration model."""
    return str(files("vllmport.pool") / "models" / "tiny")


class ModelConfig(BaseModel):
    """A model to start with the pool: `[models.NAME]`. Keys of no own meaning go to the engine."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    v1_multiprocessing: Literal["auto", "on", "off"] = "auto"
    env: dict[str, str] = Field(default_factory=dict)
    replicas: int = Field(default=1, ge=1, le=1024)
    loras: dict[str, str] = Field(default_factory=dict)
    preset: str | None = None


class TimeoutConfig(BaseModel):
    """How long calls may take: `[timeouts]`.

    Attributes:
        profiles: Name → seconds, on top of the built-in ones.
        library_profiles: The profile of calls that name none; the only library is "vllm".
        first_token: Seconds a stream may take to its first tokens.
        between_tokens: Seconds a stream may take between tokens.
    """

    model_config = ConfigDict(extra="forbid")

    profiles: dict[str, Seconds] = Field(default_factory=dict)
    library_profiles: dict[Literal["vllm"], str] = Field(default_factory=dict)
    first_token: Seconds = math.inf
    between_tokens: Seconds = math.inf

    @model_validator(mode="after")
    def _profile_is_there(self) -> Self:
        self.to_timeouts().seconds()
        return self

    def to_timeouts(self) -> Timeouts:
        """Put these on top of what is built in."""
        return Timeouts(
            {**PROFILES, **self.profiles},
            self.library_profiles.get("vllm", LIBRARY_PROFILE),
            self.first_token,
            self.between_tokens,
        )


class SecurityConfig(BaseModel):
    """Keys of a pool that listens on TCP: `[security]`. Paths count from the folder of the file.

    Attributes:
        server_key: The file of the pool's own key pair, as `vllmport keygen` writes it.
        clients: The file of the keys that may come in, with their roles and quotas.
    """

    model_config = ConfigDict(extra="forbid")

    server_key: Path
    clients: Path


class PoolConfig(BaseModel):
    """Everything a `pool.toml` may say. Relative paths count from its folder.

    Attributes:
        endpoint: Where to listen, `ipc://PATH`; or `tcp://HOST:PORT`, which needs `security`.
        environment: Which of `[environments.NAME]` holds on top of the rest; VLLMPORT_ENV names
            one as well.
        python: Interpreter of the workers; see `interpreter.py` for the order.
        venv: Virtual environment of the workers.
        log_dir: Folder for the workers' stderr.
        log_level: Of the supervisor, and of vLLM where VLLM_LOGGING_LEVEL says nothing.
        verbose: Log level "debug", unless `log_level` is given.
        process_group_kill: Whether a worker's whole group is killed with it; without that, vLLM's
            engine may not run in a process of its own.
        timeouts: How long calls may take.
        aliases: Names of models and tokenizers as callers write them → folder or hub name.
        models: What to start at once and keep.
        policy: Limits and patience.
        universal: What universal calls may do.
        security: Keys, where it listens on TCP.
    """

    model_config = ConfigDict(extra="forbid")

    endpoint: str | None = None
    environment: str | None = None
    python: str | None = None
    venv: str | None = None
    log_dir: Path | None = None
    log_level: LogLevel | None = None
    verbose: bool = False
    process_group_kill: bool = True
    timeouts: TimeoutConfig = Field(default_factory=TimeoutConfig)
    aliases: dict[str, str] = Field(default_factory=dict)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    policy: Policy = Field(default_factory=Policy)
    universal: Universal = Field(default_factory=Universal)
    security: SecurityConfig | None = None

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _file: dict[str, str] = PrivateAttr(default_factory=dict)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("policy")
    @classmethod
    def _nothing_negative(cls, policy: Policy) -> Policy:
        for name, value in asdict(policy).items():
            if value < 0:
                raise ValueError(f"{name} cannot be negative")
        if policy.max_loads < 1:
            raise ValueError("max_loads must be at least 1, or no worker could start")
        return policy

    def interpreter(self) -> Interpreter:
        """Return the Python of the workers, and who named it.

        Raises:
            InvalidRequest: A virtual environment was named that has no Python.
        """
        return find_interpreter(self.python, self.venv, self._folder)

    @property
    def origins(self) -> dict[str, str]:
        """Where each value that was given comes from: dotted path → its layer, for people."""
        return self._origins

    def known_names(self) -> dict[str, str]:
        """Return what names of models stand for: folders, absolute, or hub names."""
        aliases = {name: local(path, self._folder) for name, path in self.aliases.items()}
        return {TINY_MODEL: tiny_model_path(), ECHO_MODEL: ECHO_MODEL, **aliases}

    def specs(self) -> tuple[ModelSpec, ...]:
        """Return the specifications of the models, checked as far as it goes without an engine.

        Raises:
            InvalidRequest: An engine argument cannot be.
        """
        return specs_of(self.models, self.known_names(), self._folder)

    def to_plan(self, run_dir: Path, owner_pid: int = 0) -> Plan:
        """Make the supervisor's plan.

        Args:
            run_dir: A private folder of this run.
            owner_pid: The process the pool dies with; 0 for a service.

        Raises:
            InvalidRequest: The endpoint cannot work.
        """
        endpoint = self.endpoint or f"ipc://{run_dir / 'pool.sock'}"
        if is_tcp(endpoint):
            tcp_address(endpoint)
        else:
            private_dir(socket_path(endpoint).parent)
        log_dir = self._folder / (self.log_dir or run_dir / "logs").expanduser()
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Plan(
            endpoint=endpoint,
            run_dir=str(run_dir),
            log_dir=str(log_dir),
            python=self.interpreter().python,
            models=self.specs(),
            aliases=self.known_names(),
            policy=self.policy,
            universal=self.universal,
            timeouts=self.timeouts.to_timeouts().to_wire(),
            config=self._file,
            log_level=self.log_level or ("debug" if self.verbose else "info"),
            process_group_kill=self.process_group_kill,
            owner_pid=owner_pid,
            security=self._security(endpoint, owner_pid) if is_tcp(endpoint) else None,
        )

    def _security(self, endpoint: str, owner_pid: int) -> Security:
        from vllmport.pool.keys import read_pair
        from vllmport.pool.supervisor.door import read_guests

        if owner_pid:
            text = f"a pool at {endpoint} is a service: start it with `vllmport serve`, and join it"
            raise InvalidRequest.of("endpoint", endpoint, text)
        if self.security is None:
            text = (
                f"{endpoint} takes keys: give [security] with server_key and clients; "
                "docs/operations.md says how to make them"
            )
            raise InvalidRequest.of("security", None, text)
        clients = self._folder / self.security.clients.expanduser()
        read_guests(clients)
        pair = read_pair(
            self._folder / self.security.server_key.expanduser(), "security.server_key"
        )
        return Security(pair.secret, str(clients))


def load_config(source: Any, overrides: Mapping[str, Any]) -> PoolConfig:
    """Read, merge and check a configuration: all of it, environments that do not hold as well.

    Args:
        source: Path of a TOML file, a map, a PoolConfig, or None.
        overrides: Merged on top, maps key by key.

    Raises:
        InvalidRequest: The file cannot be read, a key is unknown or of a wrong kind, an engine
            argument cannot be, or the environment is not in it.
    """
    name, data = _read(source)
    environments = _environments(data.pop("environments", {}))
    chosen = overrides.get("environment") or os.environ.get("VLLMPORT_ENV")
    chosen = chosen or data.get("environment")
    if not isinstance(source, PoolConfig):
        _check_choice(chosen, {*environments, *ENVIRONMENTS})

    def settled(environment: str | None) -> PoolConfig:
        layers = Layers()
        layers.put(name, data)
        if environment is not None:
            section = {**environments.get(environment, {}), "environment": environment}
            layers.put(f"environments.{environment}", section)
        layers.put("override", {key: overrides[key] for key in overrides.keys() - {"environment"}})
        settings = _checked(layers)
        _place(settings, source)
        settings.specs()
        return settings

    settings = settled(chosen)
    for other in sorted(environments.keys() - {chosen}):
        try:
            settled(other)
        except InvalidRequest as exc:
            where = f"environments.{other}"
            text = f"in [{where}]: {exc.message}"
            raise InvalidRequest.of(f"{where}.{exc.parameter}", exc.value, text) from exc
    return settings


def _read(source: Any) -> tuple[str, dict[str, Any]]:
    """Return what a source says, and its name for people."""
    match source:
        case None:
            return "given", {}
        case PoolConfig():
            return "given", source.model_dump(exclude_unset=True)
        case Mapping():
            return "given", dict(source)
    return str(source), _read_toml(Path(source))


def _check_choice(environment: Any, known: set[str]) -> None:
    if environment is not None and not isinstance(environment, str):
        text = f"environment is the name of one, not {shown(environment)}"
        raise InvalidRequest.of("environment", shown(environment), text)
    if environment is not None and environment not in known:
        text = f"no environment {environment!r}; known: {', '.join(sorted(known))}"
        raise InvalidRequest.of("environment", environment, text)


def _place(settings: PoolConfig, source: Any) -> None:
    """Note where the settings lie: relative paths start there."""
    if isinstance(source, PoolConfig):
        settings._folder, settings._file = source._folder, source._file  # noqa: SLF001  # its own
    elif isinstance(source, str | Path):
        path = Path(source).absolute()
        settings._folder = path.parent  # noqa: SLF001
        settings._file = {"path": str(path), "digest": digest(path)}  # noqa: SLF001


def _environments(given: Any) -> dict[str, Mapping[str, Any]]:
    """Refuse what are no sections."""
    if not isinstance(given, Mapping):
        text = f"environments are sections [environments.NAME], not {type(given).__name__}"
        raise InvalidRequest.of("environments", None, text)
    for name, section in given.items():
        if not isinstance(section, Mapping):
            where = f"environments.{name}"
            text = f"{where} is a section of settings, not {type(section).__name__}"
            raise InvalidRequest.of(where, None, text)
    return dict(given)


def _checked(layers: Layers) -> PoolConfig:
    try:
        settings = PoolConfig.model_validate(layers.merged)
    except ValidationError as exc:
        raise _as_invalid_request(exc) from exc
    settings._origins = layers.origins  # noqa: SLF001  # its own
    return settings


def digest(path: Path) -> str:
    """Return what tells one content of a file from another; "" if it is gone."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        text = f"cannot read the configuration {path}: {exc.strerror}"
        raise InvalidRequest.of("config", str(path), text) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequest.of("config", str(path), f"{path} is not TOML: {exc}") from exc


def _as_invalid_request(exc: ValidationError) -> InvalidRequest:
    """Name the first offending key, and what it may have been meant to be."""
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [
            *(*PoolConfig.model_fields, "environments"),
            *(*TimeoutConfig.model_fields, *Policy.__dataclass_fields__),
            *(*SecurityConfig.model_fields, *Universal.__dataclass_fields__),
        ]
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        return InvalidRequest.of(where, _harmless(first), f"unknown setting {where!r}{hint}")
    return InvalidRequest.of(where, _harmless(first), f"setting {where!r}: {first['msg']}")


def _harmless(error: Any) -> str | None:
    """Show the offending value: one that is in no `env`, is no secret, and has nothing inside."""
    value, where = error["input"], [str(part) for part in error["loc"]]
    inside = isinstance(value, Mapping | list | tuple)
    secret = "env" in where or any(map(is_secret, where))
    return None if inside or secret else repr(value)
