"""The rest of `vllm.LLM`: small things that work, and what says why it cannot cross a process."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, Self

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.client.params import SamplingParams
from vllmport.pool.client.tokenizer import Tokenizer

_WEIGHTS = "weights are loaded by the worker: load another model, or the same one anew after unload"
_QUEUE = "use generate with a list, stream, or AsyncPool with asyncio.gather: calls run together"

ELSEWHERE: Mapping[str, str] = {
    "apply_model": "a function cannot travel to the worker; put it into a class named by the "
    "engine argument worker_extension_cls, and call it by name with collective_rpc",
    "enqueue": _QUEUE,
    "enqueue_chat": _QUEUE,
    "wait_for_completion": _QUEUE,
    "init_weight_transfer_engine": _WEIGHTS,
    "shutdown_weight_transfer_engine": _WEIGHTS,
    "start_weight_update": _WEIGHTS,
    "start_draft_weight_update": _WEIGHTS,
    "update_weights": _WEIGHTS,
    "finish_weight_update": _WEIGHTS,
    "get_weight_version": _WEIGHTS,
    "update_weight_version": _WEIGHTS,
    "release_kv_cache_memory": "call sleep, or unload the model",
}
"""Method of `vllm.LLM` → what to do instead."""


class VllmMethods:
    """Methods of `vllm.LLM` that are neither calls of the engine nor life of the handle."""

    @abstractmethod
    def engine_config(self) -> dict[str, Any]:
        """Return what the engine resolved its arguments to."""

    @abstractmethod
    def call(self, verb: str, args: dict[str, Any]) -> Any:
        """Call a verb of the engine."""

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> Self:
        """Make one of `vllm.EngineArgs`, or of a map; only what differs from the default counts."""
        if is_dataclass(engine_args):
            given = {
                field.name: getattr(engine_args, field.name)
                for field in fields(engine_args)
                if _differs(field, getattr(engine_args, field.name))
            }
        else:
            given = dict(engine_args)
        return cls(given.pop("model", None), **given)  # type: ignore[call-arg]  # LLM takes them

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer, which works in the worker."""
        return Tokenizer(self.call, self.engine_config())

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what the model itself asks for where a call says nothing."""
        return SamplingParams(**self.engine_config()["default_sampling_params"])

    def get_world_size(self, include_dp: bool = True) -> int:  # noqa: FBT001, FBT002  # vLLM's
        """Return on how many devices the model lies."""
        config = self.engine_config()
        size = config["tensor_parallel_size"] * config["pipeline_parallel_size"]
        return int(size * (config["data_parallel_size"] if include_dp else 1))

    def preprocess_chat(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """Return the token ids that `chat` would give the model."""
        args = {"messages": [dict(message) for message in messages], **template}
        return list(self.call("apply_chat_template", args)["token_ids"])

    def __getattr__(self, name: str) -> Any:
        """Say why a method of `vllm.LLM` is not here, and what to use instead."""
        if name not in ELSEWHERE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
            text = f"{name} is not possible from another process: {ELSEWHERE[name]}"
            raise InvalidRequest.of("verb", name, text)

        return refuse


def _differs(field: Any, value: Any) -> bool:
    try:
        default = field.default_factory()
    except TypeError:  # it has none
        default = field.default
    return bool(value != default)
