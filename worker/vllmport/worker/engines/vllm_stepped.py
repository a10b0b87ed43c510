"""v1_multiprocessing off: vLLM's engine inside this process, stepped by the worker.

No child process at all, unless tensor or pipeline parallelism asks for some.
Imports vLLM: only for workers that run it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vllm.v1.engine.llm_engine import LLMEngine

from vllmport.bridge.errors import EngineDead
from vllmport.worker.engine import Port
from vllmport.worker.engines.stepped import run_stepped
from vllmport.worker.engines.vllm_arguments import USAGE
from vllmport.worker.engines.vllm_call import Call
from vllmport.worker.engines.vllm_driver import VllmDriver, warm_up_request
from vllmport.worker.engines.vllm_errors import as_request_error, class_name


class SteppedVllm(VllmDriver):
    """Drives an `LLMEngine` by add_request, step and abort_request."""

    mode = "off"

    def __init__(self, config: Any, engine_args: Any, port: Port, loras: Mapping[str, str]) -> None:
        engine = LLMEngine.from_vllm_config(
            config, usage_context=USAGE, disable_log_stats=engine_args.disable_log_stats
        )
        super().__init__(engine, port, engine.get_supported_tasks(), loras)
        self._named: dict[str, Call] = {}

    @property
    def busy(self) -> bool:
        """Whether the engine has requests that it works on."""
        return not self.asleep and bool(self._engine.has_unfinished_requests())

    def step(self) -> None:
        """Let the engine compute one step.

        Raises:
            EngineDead: The step failed, and nothing is known of the state it left.
        """
        self.steps += 1
        try:
            outputs = self._engine.step()
        except Exception as exc:  # kernels, executors, memory: any class at all
            text = f"the engine failed in a step: {type(exc).__name__}: {exc}"
            raise EngineDead(text, details={"class": class_name(exc)}) from exc
        for output in outputs:
            call = self._named.get(output.request_id)
            if call is not None:
                if output.finished:
                    del self._named[call.name]
                self._deliver(call, output)

    def run(self, port: Port) -> None:
        """Serve until the port is closed; see `step` for how it ends otherwise."""
        run_stepped(self, port)

    def warm_up(self) -> None:
        """Run one tiny request, so that the first caller does not wait for lazy preparations."""
        prompt, params = warm_up_request(self._engine, self.info)
        self._engine.add_request("warm-up", prompt, params)
        while self.busy:
            self._engine.step()

    def close(self) -> None:
        """Let the engine's processes go, if it has any.

        Without them, all it has goes with this process, and at once; taking it apart first would
        cost more than a second of garbage collection.
        """
        if self._engine.vllm_config.parallel_config.world_size > 1:
            self._engine.engine_core.shutdown()

    def _start(self, call: Call, prompt: Any, params: Any, lora: Any) -> None:
        engine = self._engine
        try:
            if lora is not None and self.adapters.is_new(lora):
                # A bad one found inside a step would end the engine.
                engine.add_lora(lora)
                self.adapters.was_loaded(lora)
            engine.add_request(call.name, prompt, params, lora_request=lora, priority=call.priority)
        except Exception as exc:  # the engine checks as it takes a request; all classes are mapped
            engine.abort_request([call.name])  # n > 1 may have got in by halves
            raise as_request_error(exc) from exc
        self._named[call.name] = call

    def _ask(self, call: Call, action: Callable[[Any], Any], done: Callable[[Any], Any]) -> None:
        try:
            answer = done(action(self._engine))
        except Exception as exc:  # whatever the engine says no with
            raise as_request_error(exc) from exc
        del self._calls[call.key]
        self._port.finish(call.key, answer)

    def _drop(self, call: Call) -> None:
        self._named.pop(call.name, None)
        self._engine.abort_request([call.name])
