"""Configuration: `pool.toml`, maps and keywords, checked by pydantic, made into a Plan.

The only file of the pool that knows pydantic; the supervisor gets the finished Plan.
"""

import difflib
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.endpoint import private_dir, socket_path
from vllmport.pool.plan import ECHO_MODEL, TINY_MODEL, ModelSpec, Plan, Policy


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


class PoolConfig(BaseModel):
    """Everything a `pool.toml` may say.

    Attributes:
        endpoint: Where to listen, `ipc://PATH`.
        python: Interpreter of the workers; this one if not given.
        log_dir: Folder for the workers' stderr.
        aliases: Names as callers write them → folder or hub name.
        models: What to start at once and keep.
        policy: Limits and patience.
    """

    model_config = ConfigDict(extra="forbid")

    endpoint: str | None = None
    python: str | None = None
    log_dir: Path | None = None
    aliases: dict[str, str] = Field(default_factory=dict)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    policy: Policy = Field(default_factory=Policy)

    @field_validator("policy")
    @classmethod
    def _nothing_negative(cls, policy: Policy) -> Policy:
        for name, value in asdict(policy).items():
            if value < 0:
                raise ValueError(f"{name} cannot be negative")
        if policy.max_loads < 1:
            raise ValueError("max_loads must be at least 1, or no worker could start")
        return policy

    def to_plan(self, run_dir: Path, owner_pid: int = 0) -> Plan:
        """Make the supervisor's plan.

        Args:
            run_dir: A private folder of this run.
            owner_pid: The process the pool dies with; 0 for a service.

        Raises:
            InvalidRequest: The endpoint cannot work.
        """
        endpoint = self.endpoint or f"ipc://{run_dir / 'pool.sock'}"
        private_dir(socket_path(endpoint).parent)
        log_dir = self.log_dir or run_dir / "logs"
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        aliases = {TINY_MODEL: tiny_model_path(), ECHO_MODEL: ECHO_MODEL}
        aliases |= {name: _local(path) for name, path in self.aliases.items()}
        return Plan(
            endpoint=endpoint,
            run_dir=str(run_dir),
            log_dir=str(log_dir),
            python=self.python or sys.executable,
            models=tuple(_spec(name, model, aliases) for name, model in self.models.items()),
            aliases=aliases,
            policy=self.policy,
            owner_pid=owner_pid,
        )


def load_config(source: Any, overrides: Mapping[str, Any]) -> PoolConfig:
    """Read, merge and check a configuration.

    Args:
        source: Path of a TOML file, a map, a PoolConfig, or None.
        overrides: Merged on top, maps key by key.

    Raises:
        InvalidRequest: The file cannot be read, or a key is unknown or of a wrong kind.
    """
    match source:
        case None:
            data: dict[str, Any] = {}
        case PoolConfig():
            data = source.model_dump(exclude_unset=True)
        case Mapping():
            data = dict(source)
        case _:
            data = _read_toml(Path(source))
    try:
        return PoolConfig.model_validate(_merged(data, overrides))
    except ValidationError as exc:
        raise _as_invalid_request(exc) from exc


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as exc:
        text = f"cannot read the configuration {path}: {exc.strerror}"
        raise InvalidRequest.of("config", str(path), text) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InvalidRequest.of("config", str(path), f"{path} is not TOML: {exc}") from exc


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both_maps = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both_maps else value  # type: ignore[arg-type]
    return merged


def _as_invalid_request(exc: ValidationError) -> InvalidRequest:
    """Name the first offending key, and what it may have been meant to be."""
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [*PoolConfig.model_fields, *Policy.__dataclass_fields__]
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
        return InvalidRequest.of(where, first["input"], f"unknown setting {where!r}{hint}")
    return InvalidRequest.of(where, repr(first["input"]), f"setting {where!r}: {first['msg']}")


def _spec(name: str, model: ModelConfig, aliases: Mapping[str, str]) -> ModelSpec:
    from vllmport.pool.supervisor.specification import spec_from

    own = model.model_dump(exclude=set(model.model_extra or ()))
    return spec_from({**own, "name": name, "engine_args": model.model_extra or {}}, aliases)


def _local(path: str) -> str:
    """Make a path that exists absolute: the supervisor and its workers may run elsewhere."""
    expanded = Path(path).expanduser()
    return str(expanded.resolve()) if expanded.exists() else os.path.expanduser(path)
