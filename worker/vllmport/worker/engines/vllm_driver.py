"""What both vLLM drivers share: verbs, the table of open calls, and where outputs go.

Owns the table. How a request gets into the engine and how the engine runs is the subclass's.
Imports vLLM: only for workers that run it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllmport.bridge.errors import EngineError
from vllmport.worker.engine import Key, Partial, Port, Request
from vllmport.worker.engines import vllm_requests as requests
from vllmport.worker.engines import vllm_results as results
from vllmport.worker.engines.vllm_arguments import resolved
from vllmport.worker.engines.vllm_errors import as_request_error


class Call:
    """One request between `submit` and its end.

    Attributes:
        name: What the engine knows it by; never used twice.
        tokens: Tokens already put to its stream.
        prompt_logprobs: vLLM gives them once, with the first delta of a stream.
        task: What consumes its outputs, in the driver that has tasks.
    """

    __slots__ = ("key", "name", "prompt_logprobs", "request_id", "stream", "task", "tokens")

    def __init__(self, request: Request, name: str) -> None:
        self.key = request.key
        self.request_id = request.request_id
        self.stream = request.stream
        self.name = name
        self.tokens = 0
        self.prompt_logprobs: list[Any] | None = None
        self.task: Any = None


class VllmDriver(ABC):
    """An engine of vLLM behind the worker's interface; see `Engine` for the public methods."""

    mode = ""

    def __init__(self, engine: Any, port: Port) -> None:
        self.info = resolved(engine.vllm_config)
        self.running_limit = int(self.info["max_num_seqs"])
        self.capacity = 2 * self.running_limit  # so that the engine's own queue never runs dry
        self.steps = 0
        self._engine = engine
        self._port = port
        self._calls: dict[Key, Call] = {}
        self._numbers = count(1)
        self._verbs: Mapping[str, Callable[[Request], None]] = {
            "generate": self._generate,
            "chat": self._chat,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
        }

    def submit(self, request: Request) -> None:
        """Check a request and start it; verbs without the engine are answered at once."""
        requests.check_arguments(request.verb, request.args)
        self._verbs[request.verb](request)

    def abort(self, key: Key) -> Partial:
        """Take a request out of the engine and say how far it had come."""
        call = self._calls.pop(key, None)
        if call is None:
            return Partial("waiting", 0, None)
        partial = self._progress_of(call)
        self._drop(call)
        return partial

    def stats(self) -> dict[str, Any]:
        """Return the engine's own count of requests, and the steps it has made."""
        return {"unfinished": self._engine.get_num_unfinished_requests(), "steps": self.steps}

    @abstractmethod
    def run(self, port: Port) -> None:
        """Serve until the port is closed."""

    @abstractmethod
    def close(self) -> None:
        """Let the engine and its processes go."""

    @abstractmethod
    def _start(
        self, call: Call, prompt: Any, params: SamplingParams, lora: Any, priority: int
    ) -> None:
        """Give the engine a request; outputs come to `_deliver`."""

    @abstractmethod
    def _drop(self, call: Call) -> None:
        """Take a request out of the engine; no output of it comes any more."""

    # Verbs.

    def _generate(self, request: Request) -> None:
        self._open(request, requests.completion_prompt(self._engine, request.args["prompt"]))

    def _chat(self, request: Request) -> None:
        self._open(request, requests.chat_prompt(self._engine, request.args))

    def _tokenize(self, request: Request) -> None:
        self._port.finish(request.key, requests.tokenize(self._engine, request.args))

    def _detokenize(self, request: Request) -> None:
        self._port.finish(request.key, requests.detokenize(self._engine, request.args))

    def _open(self, request: Request, prompt: Any) -> None:
        given = request.args.get("sampling_params")
        params = requests.sampling_params(self._engine, given, stream=request.stream)
        lora = requests.lora_request(self._engine, request.args.get("lora_request"))
        call = Call(request, f"{request.request_id or 'call'}.{next(self._numbers)}")
        self._start(call, prompt, params, lora, request.priority)
        self._calls[call.key] = call

    # Outputs.

    def _deliver(self, call: Call, output: Any) -> None:
        """Put what the engine made of a call to the port."""
        if output.finished and any(done.finish_reason == "error" for done in output.outputs):
            self._fail(call, EngineError("the engine gave this request up", retryable=True))
        elif call.stream:
            self._stream(call, output)
        elif output.finished:
            del self._calls[call.key]
            self._port.finish(call.key, results.result(output, call.request_id))

    def _stream(self, call: Call, output: Any) -> None:
        for completion in output.outputs:
            call.tokens += len(completion.token_ids)
        if output.prompt_logprobs:  # empty from the second delta on
            call.prompt_logprobs = results.positions(output.prompt_logprobs)
        self._port.delta(call.key, results.delta(output))
        if output.finished:
            del self._calls[call.key]
            logprobs = call.prompt_logprobs
            end = results.summary(output, call.request_id, call.tokens, logprobs)
            self._port.finish(call.key, end)

    def _fail(self, call: Call, error: BaseException) -> None:
        if self._calls.get(call.key) is call:  # not aborted meanwhile, and its key given anew
            del self._calls[call.key]
            self._port.fail(call.key, as_request_error(error))

    def _progress_of(self, call: Call) -> Partial:
        """Say how far a call has come; the engine's queue is first come, first served."""
        processor = self._engine.output_processor
        names = processor.external_req_ids.get(call.name, ())
        states = [processor.request_states[name] for name in names]
        partial = results.unfinished(states, call.request_id, call.tokens)
        if partial.tokens or (states and self._is_running(states[0].request_id)):
            return partial
        return partial._replace(phase="waiting")

    def _is_running(self, name: str) -> bool:
        """Tell whether a request that has no output yet is out of the engine's own queue.

        The scheduler may live in another process; but it runs the oldest `max_num_seqs` requests.
        """
        for position, other in enumerate(self._engine.output_processor.request_states):
            if position >= self.running_limit:
                return False
            if other == name:
                return True
        return False


def warm_up_request(engine: Any) -> tuple[Any, SamplingParams]:
    """Return a request that makes the engine prepare what it prepares lazily.

    Logprobs are among that: their first use compiles, and the engine does nothing else meanwhile.
    """
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=1 if engine.model_config.max_logprobs else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return requests.completion_prompt(engine, [0]), params
