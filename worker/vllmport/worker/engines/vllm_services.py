"""What else callers may ask of an engine: adapters, caches, metrics, sleep, calls into its workers.

Each service checks its arguments and says what the engine is to do, and what to answer then.
Imports vLLM: only for workers that run it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from vllm.v1.metrics.reader import get_metrics_snapshot

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import plain
from vllmport.worker.engines.vllm_lora import Adapters


class Driver(Protocol):
    """What a service knows of the driver.

    Attributes:
        adapters: The adapters of the engine.
        asleep: Whether the engine was put to sleep.
        info: What the engine resolved its arguments to.
    """

    adapters: Adapters
    asleep: bool
    info: dict[str, Any]


Job = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What to do with the engine, and what to answer when that is done."""

Service = Callable[[Driver, Mapping[str, Any]], Job]

SLEEP_MODES = ("abort", "wait", "keep")


def _add_lora(driver: Driver, args: Mapping[str, Any]) -> Job:
    request = driver.adapters.request(args["lora_request"])
    assert request is not None, "the argument is required"

    def done(_: Any) -> dict[str, Any]:
        driver.adapters.was_loaded(request)
        return {"lora_name": request.lora_name, "lora_int_id": request.lora_int_id}

    return lambda engine: engine.add_lora(request), done


def _remove_lora(driver: Driver, args: Mapping[str, Any]) -> Job:
    request = driver.adapters.named(args["name"])

    def done(removed: Any) -> bool:
        driver.adapters.forget(request)
        return bool(removed)

    return lambda engine: engine.remove_lora(request.lora_int_id), done


def _list_loras(driver: Driver, _args: Mapping[str, Any]) -> Job:
    return _nothing, lambda _: driver.adapters.names()


def _pin_lora(driver: Driver, args: Mapping[str, Any]) -> Job:
    request = driver.adapters.named(args["name"])
    if driver.adapters.is_new(request):
        text = f"the adapter {request.lora_name!r} is not loaded yet; call add_lora first"
        raise InvalidRequest.of("name", request.lora_name, text)
    return lambda engine: engine.pin_lora(request.lora_int_id), bool


def _reset_prefix_cache(_driver: Driver, args: Mapping[str, Any]) -> Job:
    running, connector = _flag(args, "reset_running_requests"), _flag(args, "reset_connector")
    return lambda engine: engine.reset_prefix_cache(running, connector), bool


def _reset_mm_cache(driver: Driver, _args: Mapping[str, Any]) -> Job:
    if not driver.info["multimodal"]:
        text = "this model takes text only: there is no cache of media"
        raise InvalidRequest.of("verb", "reset_mm_cache", text)
    return lambda engine: engine.reset_mm_cache(), lambda _: None


def _metrics(driver: Driver, _args: Mapping[str, Any]) -> Job:
    if driver.info["disable_log_stats"]:
        text = "this engine keeps no statistics; load the model with disable_log_stats=False"
        raise InvalidRequest.of("verb", "metrics", text)
    return _nothing, lambda _: [_metric(metric) for metric in get_metrics_snapshot()]


def _sleep(driver: Driver, args: Mapping[str, Any]) -> Job:
    _require_sleep(driver)
    level, mode = args.get("level", 1), args.get("mode") or "abort"
    if level not in (0, 1, 2) or isinstance(level, bool):
        raise InvalidRequest.of("level", plain(level), "level is 0, 1 or 2")
    if mode not in SLEEP_MODES:
        raise InvalidRequest.of("mode", plain(mode), f"mode is one of {', '.join(SLEEP_MODES)}")

    def done(_: Any) -> None:
        driver.asleep = True

    return lambda engine: engine.sleep(level, mode), done


def _wake_up(driver: Driver, args: Mapping[str, Any]) -> Job:
    _require_sleep(driver)
    tags = args.get("tags")

    def done(woken: Any) -> bool:
        driver.asleep = woken is False  # some of its memory still is
        return not driver.asleep

    return lambda engine: engine.wake_up(tags), done


def _is_sleeping(driver: Driver, _args: Mapping[str, Any]) -> Job:
    if not driver.info["enable_sleep_mode"]:
        return _nothing, lambda _: False
    return lambda engine: engine.is_sleeping(), bool


def _collective_rpc(_driver: Driver, args: Mapping[str, Any]) -> Job:
    method, given = args["method"], tuple(args.get("args") or ())
    if not isinstance(method, str):
        raise InvalidRequest.of("method", plain(method), "method is the name of a worker's method")
    kwargs = args.get("kwargs") or {}
    return lambda engine: engine.collective_rpc(method, args.get("timeout"), given, kwargs), list


def _start_profile(_driver: Driver, args: Mapping[str, Any]) -> Job:
    prefix, given = args.get("profile_prefix"), dict(args)
    given.pop("profile_prefix", None)
    return lambda engine: engine.start_profile(prefix, **given), lambda _: None


def _stop_profile(_driver: Driver, _args: Mapping[str, Any]) -> Job:
    return lambda engine: engine.stop_profile(), lambda _: None


SERVICES: Mapping[str, Service] = {
    "add_lora": _add_lora,
    "remove_lora": _remove_lora,
    "list_loras": _list_loras,
    "pin_lora": _pin_lora,
    "reset_prefix_cache": _reset_prefix_cache,
    "reset_mm_cache": _reset_mm_cache,
    "metrics": _metrics,
    "sleep": _sleep,
    "wake_up": _wake_up,
    "is_sleeping": _is_sleeping,
    "collective_rpc": _collective_rpc,
    "start_profile": _start_profile,
    "stop_profile": _stop_profile,
}
"""Verb → service."""


def _nothing(_engine: Any) -> None:
    """Ask nothing of the engine."""


def _flag(args: Mapping[str, Any], name: str) -> bool:
    value = args.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest.of(name, plain(value), f"{name} is true or false")
    return value


def _require_sleep(driver: Driver) -> None:
    """Refuse to sleep where vLLM would say yes and do nothing."""
    if not driver.info["enable_sleep_mode"]:
        where = "; vLLM has no sleep mode on the CPU" if driver.info["device"] == "cpu" else ""
        text = f"this model cannot sleep: it was not loaded with enable_sleep_mode=True{where}"
        raise InvalidRequest.of("enable_sleep_mode", "false", text)


def _metric(metric: Any) -> dict[str, Any]:
    return {"kind": type(metric).__name__.lower(), **asdict(metric)}
