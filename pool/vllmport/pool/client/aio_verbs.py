"""What an AsyncLLM can do besides generating text; `verbs.py` says more of each method."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from vllmport.bridge.errors import InvalidRequest
from vllmport.pool.client.adapters import Adapters
from vllmport.pool.client.params import BeamSearchParams
from vllmport.pool.client.pooled import (
    BeamSearchOutput,
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    Metric,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
    beams_from,
    classification_from,
    embedding_from,
    pooling_from,
    scores_from,
)
from vllmport.pool.client.requests import (
    Limits,
    Lora,
    PoolParams,
    Prompts,
    beam_requests,
    pooling_requests,
    score_requests,
)
from vllmport.pool.client.verbs import check_concurrency, named_method

T = TypeVar("T")


class AsyncEngineVerbs:
    """Methods of `AsyncLLM`; `limits` are `timeout` and others of `generate`."""

    _adapters: Adapters

    @abstractmethod
    async def _run(
        self,
        verb: str,
        requests: list[dict[str, Any]],
        convert: Callable[[Any], T],
        /,
        **limits: Unpack[Limits],
    ) -> list[T]:
        """Make calls and wait for all of them."""

    async def _one(self, verb: str, args: dict[str, Any], limits: Limits) -> Any:
        return (await self._run(verb, [args], lambda value: value, **limits))[0]

    # Pooling models.

    async def embed(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolParams | Sequence[PoolParams] = None,
        lora_request: Lora | Sequence[Lora] = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **limits: Unpack[Limits],
    ) -> list[EmbeddingRequestOutput]:
        """Embed prompts; the model has to be loaded with `runner="pooling"`."""
        requests = self._pooling(prompts, pooling_params, lora_request, tokenization_kwargs)
        return await self._run("embed", requests, embedding_from, **limits)

    async def classify(
        self,
        prompts: Prompts,
        *,
        pooling_params: PoolParams | Sequence[PoolParams] = None,
        lora_request: Lora | Sequence[Lora] = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **limits: Unpack[Limits],
    ) -> list[ClassificationRequestOutput]:
        """Classify prompts; the model has to be loaded as a classifier."""
        requests = self._pooling(prompts, pooling_params, lora_request, tokenization_kwargs)
        return await self._run("classify", requests, classification_from, **limits)

    async def encode(
        self,
        prompts: Prompts,
        pooling_params: PoolParams | Sequence[PoolParams] = None,
        *,
        pooling_task: str | None = None,
        lora_request: Lora | Sequence[Lora] = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **limits: Unpack[Limits],
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Do any pooling task: "embed", "classify", "token_embed" or "token_classify"."""
        if pooling_task is None:
            text = "encode needs pooling_task=; for text to token ids call tokenize"
            raise InvalidRequest.of("pooling_task", None, text)
        requests = self._pooling(
            prompts, pooling_params, lora_request, tokenization_kwargs, pooling_task
        )
        return await self._run("pool", requests, pooling_from, **limits)

    async def score(
        self,
        data_1: Any,
        data_2: Any,
        /,
        *,
        pooling_params: PoolParams = None,
        lora_request: Lora = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        **limits: Unpack[Limits],
    ) -> list[ScoringRequestOutput]:
        """Score one text with one or many, or many with as many."""
        extra = {"tokenization_kwargs": tokenization_kwargs, "chat_template": chat_template}
        adapter = self._adapters.resolve(lora_request)
        requests = score_requests(data_1, data_2, pooling_params, adapter, extra)
        found = await self._run("score", requests, scores_from, **limits)
        return [score for chunk in found for score in chunk]

    def _pooling(
        self,
        prompts: Prompts,
        params: PoolParams | Sequence[PoolParams],
        lora: Lora | Sequence[Lora],
        tokenization: Mapping[str, Any] | None,
        task: str | None = None,
    ) -> list[dict[str, Any]]:
        extra = {"tokenization_kwargs": tokenization, "pooling_task": task}
        return pooling_requests(prompts, params, self._adapters.resolve(lora), extra)

    # Beams.

    async def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams | Mapping[str, Any],
        lora_request: Lora | Sequence[Lora] = None,
        *,
        concurrency_limit: int | None = None,
        **limits: Unpack[Limits],
    ) -> list[BeamSearchOutput]:
        """Find the most probable continuations of each prompt.

        `concurrency_limit` is taken as `vllm.LLM` takes it, and changes nothing: the pool itself
        has no more calls run than the engine has room for.
        """
        check_concurrency(concurrency_limit)
        requests = beam_requests(prompts, params, self._adapters.resolve(lora_request))
        return await self._run("beam_search", requests, beams_from, **limits)

    # Adapters.

    async def add_lora(self, name: str, path: str, **limits: Unpack[Limits]) -> int:
        """Load an adapter, so that `lora_request=name` means it; return the engine's id of it.

        Raises:
            InvalidRequest: The model takes no adapters, or there is none at this path.
        """
        request = {"lora_name": name, "lora_path": path}
        found = await self._one("add_lora", {"lora_request": request}, limits)
        self._adapters.add(name, path)
        return int(found["lora_int_id"])

    async def remove_lora(self, name: str, **limits: Unpack[Limits]) -> bool:
        """Unload an adapter and forget its name."""
        removed = await self._one("remove_lora", {"name": name}, limits)
        self._adapters.remove(name)
        return bool(removed)

    async def list_loras(self, **limits: Unpack[Limits]) -> dict[str, dict[str, Any]]:
        """Return the adapters that the engine knows: `lora_int_id`, `lora_path`, `loaded`."""
        return dict(await self._one("list_loras", {}, limits))

    async def pin_lora(self, name: str, **limits: Unpack[Limits]) -> bool:
        """Keep a loaded adapter loaded, however many others are used."""
        return bool(await self._one("pin_lora", {"name": name}, limits))

    # The engine.

    async def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,  # noqa: FBT001, FBT002  # vLLM's parameter
        reset_connector: bool = False,  # noqa: FBT001, FBT002
        **limits: Unpack[Limits],
    ) -> bool:
        """Forget cached prompts; False if some are in use."""
        args = {
            "reset_running_requests": reset_running_requests,
            "reset_connector": reset_connector,
        }
        return bool(await self._one("reset_prefix_cache", args, limits))

    async def reset_mm_cache(self, **limits: Unpack[Limits]) -> None:
        """Forget prepared images and the like."""
        await self._one("reset_mm_cache", {}, limits)

    async def get_metrics(self, **limits: Unpack[Limits]) -> list[Metric]:
        """Return the engine's metrics; needs `disable_log_stats=False`."""
        return [Metric(**metric) for metric in await self._one("metrics", {}, limits)]

    async def sleep(self, level: int = 1, mode: str = "abort", **limits: Unpack[Limits]) -> None:
        """Free the GPU's memory and keep the process; needs `enable_sleep_mode=True`."""
        await self._one("sleep", {"level": level, "mode": mode}, limits)

    async def wake_up(self, tags: list[str] | None = None, **limits: Unpack[Limits]) -> bool:
        """Take the memory back."""
        return bool(await self._one("wake_up", {"tags": tags} if tags else {}, limits))

    async def is_sleeping(self, **limits: Unpack[Limits]) -> bool:
        """Return whether the engine sleeps."""
        return bool(await self._one("is_sleeping", {}, limits))

    async def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of vLLM's own workers by its name; arguments and results are plain data."""
        request: dict[str, Any] = {"method": named_method(method)}
        request |= {"args": list(args), "kwargs": dict(kwargs or {})}
        if timeout is not None:
            request["timeout"] = timeout
        return list(await self._one("collective_rpc", request, Limits(timeout=timeout)))

    async def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
        **limits: Unpack[Limits],
    ) -> None:
        """Start vLLM's profiler; needs the engine argument `profiler_config`."""
        args = {
            "profile_prefix": profile_prefix,
            "delay_iterations": delay_iterations,
            "max_iterations": max_iterations,
        }
        given = {name: value for name, value in args.items() if value is not None}
        await self._one("start_profile", given, limits)

    async def stop_profile(self, **limits: Unpack[Limits]) -> None:
        """Stop vLLM's profiler."""
        await self._one("stop_profile", {}, limits)
