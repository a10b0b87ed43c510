"""Makes a model specification of what a caller or a configuration says.

Pure. What arrives may come from any language, so every field is looked at.
"""

from collections.abc import Mapping
from typing import Any, Final

from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.removed import Modern
from vllmport.pool.engine_check import check_engine_args
from vllmport.pool.plan import ECHO_MODEL, TINY_MODEL, ModelSpec
from vllmport.pool.presets import preset

MAX_MODEL_NAME: Final = 200
"""Bytes in the name of a model; ids of workers and names of files are made from it."""

MAX_ENV: Final = 64 * 1024
"""Characters in the environment of one model."""

MAX_REPLICAS: Final = 1024

MODES: Final = ("auto", "on", "off")


def spec_from(args: Mapping[str, Any], aliases: Mapping[str, str]) -> ModelSpec:
    """Build a specification.

    Args:
        args: `model`, `name`, `v1_multiprocessing`, `env`, `replicas`, `loras`,
            `preset`, `engine_args`; all optional.
        aliases: Name of a model, or of a tokenizer, as callers write it → what it stands for.

    Raises:
        InvalidRequest: A field is of a wrong type or out of range, or an engine argument unknown.
    """
    if args.get("name") and not args.get("model"):
        text = f"no model {shown(args['name'])} runs in this pool; say which `model` to load"
        raise InvalidRequest.of("name", shown(args["name"]), text)
    asked = _printable("model", args.get("model") or TINY_MODEL)
    resolved = aliases.get(asked, asked)
    mode = _mode(args.get("v1_multiprocessing") or "auto")
    engine_args, notes = _engine_args(args.get("engine_args") or {}, checked=resolved != ECHO_MODEL)
    engine_args = {**preset(args.get("preset")), **engine_args}
    if isinstance(tokenizer := engine_args.get("tokenizer"), str):
        engine_args["tokenizer"] = aliases.get(tokenizer, tokenizer)
    env = _env(args.get("env") or {})
    if isinstance(engine_args.get("hf_token"), str):  # where it is shown to nobody
        env = {**env, "HF_TOKEN": engine_args.pop("hf_token")}
    if resolved == aliases.get(TINY_MODEL):
        # It is there to be quick: one process and no compilation, unless it was asked otherwise.
        mode = "off" if mode == "auto" else mode
        engine_args = {"enforce_eager": True, **engine_args}
    return ModelSpec(
        name=_name(args.get("name") or asked),
        model=resolved,
        engine="echo" if resolved == ECHO_MODEL else "vllm",
        v1_multiprocessing=mode,
        env=env,
        replicas=_replicas(args.get("replicas", 1)),
        loras=_loras(args.get("loras") or {}),
        engine_args=engine_args,
        notes=tuple(notes),
    )


def _printable(parameter: str, value: Any) -> str:
    if isinstance(value, str) and value.isprintable():
        return value
    text = f"{parameter} must be printable text, not {shown(value)}"
    raise InvalidRequest.of(parameter, shown(value), text)


def _name(value: Any) -> str:
    name = _printable("name", value)
    if len(name.encode()) > MAX_MODEL_NAME:
        text = f"the name of a model has at most {MAX_MODEL_NAME} bytes; give it a shorter name"
        raise InvalidRequest.of("name", name, text)
    return name


def _mode(value: Any) -> str:
    if value in MODES:
        return str(value)
    text = f"v1_multiprocessing is one of {', '.join(MODES)}, not {shown(value)}"
    raise InvalidRequest.of("v1_multiprocessing", shown(value), text)


def _replicas(value: Any) -> int:
    if type(value) is int and 1 <= value <= MAX_REPLICAS:
        return value
    text = f"replicas is a number from 1 to {MAX_REPLICAS}, not {shown(value)}"
    raise InvalidRequest.of("replicas", shown(value), text)


def _loras(value: Any) -> dict[str, str]:
    if isinstance(value, dict) and all(
        isinstance(x, str) and x for kv in value.items() for x in kv
    ):
        return value
    raise InvalidRequest.of("loras", shown(value), "loras is a map of names to folders")


def _engine_args(value: Any, *, checked: bool) -> Modern:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return check_engine_args(value) if checked else (value, [])
    raise InvalidRequest.of("engine_args", None, "engine arguments are a map with text keys")


def _env(env: Any) -> dict[str, str]:
    """Refuse what cannot be an environment; values stay out of the errors, they may be secret."""
    if not isinstance(env, dict) or not all(isinstance(x, str) for kv in env.items() for x in kv):
        raise InvalidRequest.of("env", None, "env is a map of text to text")
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            text = f"{shown(name)} cannot be set in an environment"
            raise InvalidRequest.of("env", shown(name), text)
    if sum(len(name) + len(value) for name, value in env.items()) > MAX_ENV:
        raise InvalidRequest.of("env", None, f"env has more than {MAX_ENV} characters")
    return env
