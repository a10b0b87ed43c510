"""What both vLLM drivers share: verbs, the table of open calls, and where outputs go.

Owns the table. How a request gets into the engine and how the engine runs is the subclass's.
Imports vLLM: only for workers that run it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams

from vllmport.bridge.errors import EngineError, InvalidRequest
from vllmport.worker.engine import Key, Partial, Port, Request
from vllmport.worker.engines import vllm_prompts as prompts
from vllmport.worker.engines import vllm_requests as requests
from vllmport.worker.engines import vllm_results as results
from vllmport.worker.engines.vllm_arguments import resolved
from vllmport.worker.engines.vllm_call import Call
from vllmport.worker.engines.vllm_errors import as_request_error
from vllmport.worker.engines.vllm_lora import Adapters
from vllmport.worker.engines.vllm_plans import Plan, Pooling, beam_search
from vllmport.worker.engines.vllm_roots import roots_of
from vllmport.worker.engines.vllm_services import SERVICES, Service


class VllmDriver(ABC):
    """An engine of vLLM behind the worker's interface; see `Engine` for the public methods."""

    mode = ""

    def __init__(
        self, engine: Any, port: Port, tasks: tuple[Any, ...], loras: Mapping[str, str]
    ) -> None:
        self.info = resolved(engine, tasks)
        self.roots = roots_of(engine, self.info)
        self.running_limit = int(self.info["max_num_seqs"])
        self.capacity = 2 * self.running_limit  # so that the engine's own queue never runs dry
        self.steps = 0
        self.asleep = False
        self.adapters = Adapters(engine.vllm_config, loras)
        self._engine = engine
        self._port = port
        self._calls: dict[Key, Call] = {}
        self._numbers = count(1)
        pooling = Pooling(engine, tasks)
        self._verbs: Mapping[str, Callable[[Request], None]] = {
            "generate": self._generate,
            "chat": self._chat,
            "tokenize": self._at_once(prompts.tokenize),
            "detokenize": self._at_once(prompts.detokenize),
            "apply_chat_template": self._at_once(prompts.chat_text),
            "vocabulary": self._at_once(prompts.vocabulary),
            "beam_search": self._planned(lambda args, lora: beam_search(engine, args, lora)),
            "embed": self._planned(pooling.embed),
            "classify": self._planned(pooling.classify),
            "pool": self._planned(pooling.pool),
            "score": self._planned(pooling.score),
            **{name: self._served(service) for name, service in SERVICES.items()},
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
        self._drop_all(call)
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
    def _start(self, call: Call, prompt: Any, params: Any, lora: Any) -> None:
        """Give the engine a request; outputs come to `_deliver`."""

    @abstractmethod
    def _drop(self, call: Call) -> None:
        """Take a request out of the engine; no output of it comes any more."""

    @abstractmethod
    def _ask(self, call: Call, action: Callable[[Any], Any], done: Callable[[Any], Any]) -> None:
        """Have the engine itself do something; what `done` makes of the answer goes out."""

    # Verbs.

    def _generate(self, request: Request) -> None:
        args = request.args
        self._open(request, prompts.completion_prompt(self._engine, args["prompt"], args))

    def _chat(self, request: Request) -> None:
        self._open(request, prompts.chat_prompt(self._engine, request.args))

    def _open(self, request: Request, prompt: Any) -> None:
        if "generate" not in self.info["supported_tasks"]:
            text = f"this model does {self.info['pooling_task']!r}; it generates no text"
            raise InvalidRequest.of("verb", request.verb, text)
        params, notes = requests.sampling_params(self._engine, request.args, stream=request.stream)
        self._refuse_deadly(params)
        lora = self.adapters.request(request.args.get("lora_request"))
        call = self._new_call(request)
        call.notes = notes
        self._start(call, prompt, params, lora)
        self._calls[call.key] = call

    def _refuse_deadly(self, params: SamplingParams) -> None:
        """Refuse what would end the engine, and with it everybody's calls."""
        on_cpu = self.info["device"] == "cpu" and self.info["enable_lora"]
        if on_cpu and params.prompt_logprobs is not None:
            text = "with enable_lora on the CPU, vLLM's engine dies of prompt_logprobs beside any "
            text += "other request; load the model without enable_lora for them"
            raise InvalidRequest.of("prompt_logprobs", params.prompt_logprobs, text)

    def _at_once(
        self, answer: Callable[[Any, Mapping[str, Any]], Any]
    ) -> Callable[[Request], None]:
        """Make a verb that needs no turn of the engine."""

        def run(request: Request) -> None:
            self._port.finish(request.key, answer(self._engine, request.args))

        return run

    def _planned(self, make: Callable[[Mapping[str, Any], Any], Plan]) -> Callable[[Request], None]:
        """Make a verb that has a plan."""

        def run(request: Request) -> None:
            call = self._new_call(request)
            call.plan = make(request.args, self.adapters.request(request.args.get("lora_request")))
            self._calls[call.key] = call
            try:
                self._advance(call)
            except BaseException:
                self._calls.pop(call.key, None)
                raise

        return run

    def _served(self, service: Service) -> Callable[[Request], None]:
        """Make a verb that asks the engine for something else than tokens."""

        def run(request: Request) -> None:
            action, done = service(self, request.args)
            call = self._new_call(request)
            self._calls[call.key] = call
            try:
                self._ask(call, action, done)
            except BaseException:
                self._calls.pop(call.key, None)
                raise

        return run

    def _new_call(self, request: Request) -> Call:
        return Call(request, f"{request.request_id or 'call'}.{next(self._numbers)}")

    # Plans.

    def _advance(self, call: Call) -> None:
        """Start the next parts of a plan, or end its call."""
        assert call.plan is not None
        gathered = [call.outputs[part.name] for part in call.parts]
        try:
            following = call.plan.send(gathered or None)  # type: ignore[arg-type]  # None starts it
        except StopIteration as stop:
            del self._calls[call.key]
            self._port.finish(call.key, _named(stop.value, call.request_id))
            return
        call.parts, call.outputs = [], {}
        for number, (prompt, params, lora) in enumerate(following):
            part = call.part(number)
            try:
                self._start(part, prompt, params, lora)
            except BaseException:
                self._drop_all(call)
                raise
            call.parts.append(part)
        call.tokens += 1

    def _gather(self, part: Call, output: Any) -> None:
        """Take what one part of a plan gave; go on when all parts have given theirs."""
        whole = part.whole
        assert whole is not None
        if not output.finished:
            return
        whole.outputs[part.name] = output
        error = getattr(output, "error", None)
        try:
            if error is not None:
                raise EngineError(f"the engine gave this request up: {error}", retryable=True)
            if len(whole.outputs) == len(whole.parts):
                self._advance(whole)
        except Exception as exc:  # noqa: BLE001  # what a plan meets belongs to its call
            self._fail(whole, exc)

    def _drop_all(self, call: Call) -> None:
        """Take a call and all its parts out of the engine."""
        if call.plan is None:
            self._drop(call)
            return
        call.plan.close()
        for part in call.parts:
            if part.name not in call.outputs:
                self._drop(part)

    # Outputs.

    def _deliver(self, call: Call, output: Any) -> None:
        """Put what the engine made of a call to the port."""
        if call.whole is not None:
            self._gather(call, output)
        elif output.finished and any(done.finish_reason == "error" for done in output.outputs):
            self._fail(call, EngineError("the engine gave this request up", retryable=True))
        elif call.stream:
            self._stream(call, output)
        elif output.finished:
            del self._calls[call.key]
            self._finish(call, results.result(output, call.request_id))

    def _stream(self, call: Call, output: Any) -> None:
        for completion in output.outputs:
            call.tokens += len(completion.token_ids)
        if output.prompt_logprobs:  # empty from the second delta on
            call.prompt_logprobs = results.positions(output.prompt_logprobs)
        self._port.delta(call.key, results.delta(output))
        if output.finished:
            del self._calls[call.key]
            logprobs = call.prompt_logprobs
            self._finish(call, results.summary(output, call.request_id, call.tokens, logprobs))

    def _finish(self, call: Call, value: dict[str, Any]) -> None:
        self._port.finish(call.key, {**value, "notes": call.notes} if call.notes else value)

    def _fail(self, call: Call, error: BaseException) -> None:
        whole = call.whole or call
        if self._calls.get(whole.key) is whole:  # not aborted meanwhile, and its key given anew
            del self._calls[whole.key]
            if whole.plan is not None:
                self._drop_all(whole)
            self._port.fail(whole.key, as_request_error(error))

    def _progress_of(self, call: Call) -> Partial:
        """Say how far a call has come; the engine's queue is first come, first served."""
        if call.plan is not None:
            return Partial("prefill", 0, None)
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


def warm_up_request(engine: Any, info: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a request that makes the engine prepare what it prepares lazily.

    Logprobs are among that: their first use compiles, and the engine does nothing else meanwhile.
    """
    prompt = prompts.completion_prompt(engine, [0])
    if info["pooling_task"] is not None:
        params = PoolingParams(task=info["pooling_task"])
        params.verify(engine.model_config)
        return prompt, params
    return prompt, SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=1 if engine.model_config.max_logprobs else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _named(value: Any, request_id: str) -> Any:
    """Put the caller's name for the call into its results."""
    if isinstance(value, list):
        return [_named(item, request_id) for item in value]
    return {"request_id": request_id, **value}
