"""vLLM's exceptions as errors of this project: chosen by class, never by text.

Owns the table of which class means what. A text serves only to find which argument it
speaks of. Imports vLLM: only for workers that run it.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pydantic
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from jinja2 import TemplateError
from msgspec import ValidationError
from vllm.exceptions import (
    GracefulHTTPError,
    RetryableRequestError,
    VLLMClientError,
    VLLMUnprocessableEntityError,
    VLLMValidationError,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from vllmport.bridge.errors import (
    CudaOutOfMemory,
    EngineDead,
    EngineError,
    GpuMemoryUtilization,
    InvalidRequest,
    KVCacheTooSmall,
    Overloaded,
    StartupFailed,
    VllmportError,
)
from vllmport.bridge.removed import GUIDED
from vllmport.worker.causes import Cause

_CONFIG_NAMES = {"cache_dtype": "kv_cache_dtype", "method": "quantization"}
"""Fields of vLLM's configuration that its engine arguments call by another name."""


NO_HUB = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError)
"""What the hub's client raises where it cannot be reached, or does not give what was asked for."""

_NOT_ARGUMENTS = {None, "input_tokens", "input_text"}
"""What vLLM calls a parameter though no caller gives one of that name."""


def as_request_error(  # noqa: C901, PLR0911  # one flat table of classes
    error: BaseException, parameter: str = "", value: Any = None
) -> VllmportError:
    """Say what an exception means for the one request that met it.

    Args:
        error: What vLLM raised.
        parameter: The argument to blame where vLLM does not name one.
        value: Its value.
    """
    match error:
        case VllmportError():
            return error
        case EngineDeadError():
            return EngineDead(str(error))
        case EngineGenerateError() if error.__cause__ is not None:  # a wrapper and no more
            return as_request_error(error.__cause__, parameter, value)
        case VLLMValidationError() | VLLMUnprocessableEntityError():
            if error.parameter not in _NOT_ARGUMENTS:
                parameter, value = error.parameter, error.value
            elif not parameter:
                parameter, value = _constraint(error)
            return InvalidRequest.of(parameter, plain(value), str(error.args[0]))
        case (
            VLLMClientError()
            | ValueError()
            | TypeError()
            | ValidationError()
            | TemplateError()
            | NotImplementedError()
        ):
            if not parameter:
                parameter, value = _constraint(error)
            return InvalidRequest.of(parameter, plain(value), str(error))
        case GracefulHTTPError():  # admission limits the user set on the engine itself
            return Overloaded(error.message)
        case RetryableRequestError():
            return EngineError(str(error), retryable=True, details={"class": class_name(error)})
    return EngineError(f"{type(error).__name__}: {error}", details={"class": class_name(error)})


def _constraint(error: BaseException) -> tuple[str, Any]:
    """Return the constraint, by name, that vLLM was checking as it raised; "" if it was none."""
    checking = SamplingParams._validate_structured_outputs.__code__  # noqa: SLF001
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code is checking:
            constraints = frame.f_locals["self"].structured_outputs
            given = {kind: getattr(constraints, kind) for kind in GUIDED}
            return next(((kind, it) for kind, it in given.items() if it is not None), ("", None))
    return "", None


def as_config_error(error: BaseException, args: Mapping[str, Any]) -> VllmportError:
    """Say what an exception means that was raised while the engine arguments were checked."""
    match error:
        case VllmportError():
            return error
        case pydantic.ValidationError():
            return _refused_fields(error, args)
        case OSError() if isinstance(error, NO_HUB) or not Path(args["model"]).exists():
            return no_hub(error, "model", args["model"])  # the latter is transformers' word for it
        case VLLMClientError() | ValueError() | TypeError():
            name = _mentioned(str(error), args)
            return InvalidRequest.of(name, plain(args.get(name)), str(error), phase="load")
    return as_load_error(error)


def as_load_error(error: BaseException, cause: Cause | None = None) -> VllmportError:
    """Say what an exception means that was raised while the engine was built.

    Args:
        error: What was raised here.
        cause: What a process of the engine said of its own failure, which is what counts then.
    """
    if isinstance(error, VllmportError):
        return error
    cause = cause or Cause.of(error)
    if cause.module in _WAITING_FOR_OTHERS:
        text = f"an engine process ended while it loaded, and said nothing ({cause.text})"
        details = {"class": cause.name}
        return StartupFailed(text, phase="load", retryable=True, details=details)
    cls, advice = _MEMORY.get((cause.module, cause.function), (StartupFailed, ""))
    if cause.name == class_of(torch.OutOfMemoryError):
        cls, advice = CudaOutOfMemory, _OUT_OF_MEMORY
    name = cause.name.rpartition(".")[2]
    text = f"{name}: {cause.text}{advice}"
    return cls(text, phase="load", details={"class": cause.name})


_WAITING_FOR_OTHERS = ("vllm.v1.engine.utils", "vllm.v1.executor.multiproc_executor")
"""Where vLLM raises that another process of its own did not come up. Had that one failed with an
exception, it would be the cause: so it was killed, and another try may succeed."""

_OUT_OF_MEMORY = (
    "; lower max_model_len, max_num_seqs or gpu_memory_utilization, use quantization or "
    "cpu_offload_gb, or raise tensor_parallel_size"
)
_MEMORY: Mapping[tuple[str, str], tuple[type[StartupFailed], str]] = {
    ("vllm.v1.core.kv_cache_utils", "_check_enough_kv_cache_memory"): (
        KVCacheTooSmall,
        "; lower max_model_len, raise kv_cache_memory_bytes or gpu_memory_utilization, or use "
        "kv_cache_dtype='fp8'",
    ),
    ("vllm.v1.worker.utils", "request_memory"): (
        GpuMemoryUtilization,
        "; lower gpu_memory_utilization, set kv_cache_memory_bytes, or free the GPU",
    ),
    ("vllm.v1.worker.cpu_worker", "__init__"): (
        GpuMemoryUtilization,
        "; on the CPU, set kv_cache_memory_bytes",
    ),
}
"""Where vLLM raises what it has no class for → ours, and what to do about it."""


@contextmanager
def blaming(parameter: str) -> Iterator[None]:
    """Turn what the block raises into our errors; `parameter` is at fault unless vLLM names one."""
    try:
        yield
    except Exception as exc:  # tokenizers, templates, vLLM: all classes are mapped
        raise as_request_error(exc, parameter) from exc


def unknown(
    kind: str, name: str, value: Any, known: Iterable[str], parameter: str = ""
) -> InvalidRequest:
    """Build the refusal of a name that does not exist, with the nearest one that does."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest.of(parameter or name, plain(value), f"unknown {kind} {name!r}{hint}")


def refuse_missing(parameter: str, path: str) -> None:
    """Refuse what looks like a path and leads nowhere; anything else may be a name on a hub."""
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().exists():
        raise InvalidRequest.of(parameter, path, f"there is nothing at {path!r}")


def plain(value: Any) -> Any:
    """Return the value if it can surely travel, else a short text that shows it."""
    if value is None or isinstance(value, str | int | float):
        return value
    return repr(value)[:200]


def class_name(error: BaseException) -> str:
    """Return the full name of an exception's class."""
    return class_of(type(error))


def class_of(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def no_hub(error: BaseException, parameter: str, name: str) -> StartupFailed:
    """Say what to do when the hub cannot be reached, or does not have what was named."""
    return StartupFailed(
        f"{parameter} {name!r} is not on this machine and the hub did not give it: give its folder,"
        f' or name the folder in the pool\'s aliases: "{name}" = "/path"; the hub\'s client said '
        f"{type(error).__name__}: {error}",
        phase="load",
        details={"class": class_name(error)},
    )


def _refused_fields(error: pydantic.ValidationError, args: Mapping[str, Any]) -> InvalidRequest:
    """Name each field once, as the engine argument the user knows; blame one that was given."""
    messages: dict[str, str] = {}
    for part in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(part["loc"][0]) if part["loc"] else ""
        messages.setdefault(_CONFIG_NAMES.get(field, field), part["msg"])
    text = "; ".join(f"{field}: {text}" if field else text for field, text in messages.items())
    holders = [name for name, value in args.items() if _holds(value, messages)]
    given = [name for name in messages if name in args] or holders
    name = next(iter(given), "") or _mentioned(text, args) or next(iter(messages))
    return InvalidRequest.of(name, plain(args.get(name)), text, phase="load")


def _holds(value: Any, fields: Iterable[str]) -> bool:
    return isinstance(value, Mapping) and any(field in value for field in fields)


def _mentioned(text: str, args: Mapping[str, Any]) -> str:
    """Return the argument of a user's that a refusal speaks of first, if it names any.

    vLLM often says what is wrong of an argument without saying which one in any other way. It may
    call it by its name, by that in words, or by its value.
    """
    found: list[tuple[int, str]] = []
    for name, value in args.items():
        words = {name, name.replace("_", " "), *([value] if isinstance(value, str) else [])}
        if name != "model":
            found += [(text.find(word), name) for word in words if word and word in text]
    return min(found, default=(0, ""))[1]
