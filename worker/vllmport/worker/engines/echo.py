"""An engine without a model: it says back what it is given, one character a token.

Same interface and result shapes as vLLM, and it misbehaves on request. For speed tests, fault tests
and first steps; never a stand-in where vLLM itself is to be tested.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from vllmport.bridge.errors import InvalidRequest, StartupFailed, shown
from vllmport.worker.engine import Key, Partial, Port, Request
from vllmport.worker.engines.faults import WAYS, start_child
from vllmport.worker.engines.stepped import run_stepped
from vllmport.worker.universal.performing import Root

ARGUMENTS = {
    "step_delay": 0.0,
    "load_delay": 0.0,
    "load_stages": 1,
    "load_spin": 0.0,
    "max_model_len": 65536,
    "max_num_seqs": 256,
    "fail_load": "",
    "exit_on_load": 0,
    "children": (),
}
"""Engine arguments with their defaults: seconds, tokens, requests, and stages that the delay is
reported in; then ways to fail, and children to start while loading: for each the ways it hides
(`faults.WAYS`)."""

SAMPLING = {"max_tokens": 16, "ignore_eos": False, "temperature": 1.0, "seed": None}


class _Generation:
    """One running request: the characters to say, and how many were said."""

    def __init__(self, request: Request, prompt: str, params: Mapping[str, Any]) -> None:
        self.request = request
        self.prompt = prompt
        self.limit = params["max_tokens"] if params["max_tokens"] is not None else len(prompt)
        self.stops = not params["ignore_eos"] and self.limit > len(prompt)
        self.total = len(prompt) if self.stops else self.limit
        self.said = 0

    def say(self) -> str:
        """Say one more character; the prompt begins anew where it ends."""
        self.said += 1
        return self.prompt[(self.said - 1) % len(self.prompt)]

    @property
    def finish_reason(self) -> str | None:
        if self.said < self.total:
            return None
        return "stop" if self.stops else "length"

    def output(self, text: str) -> dict[str, Any]:
        return {
            "index": 0,
            "text": text,
            "token_ids": [ord(char) for char in text],
            "cumulative_logprob": None,
            "logprobs": None,
            "finish_reason": self.finish_reason,
            "stop_reason": None,
        }

    def summary(self) -> dict[str, Any]:
        return {
            "request_id": self.request.request_id,
            "prompt": self.prompt,
            "prompt_token_ids": [ord(char) for char in self.prompt],
            "prompt_logprobs": None,
            "num_cached_tokens": 0,
            "finished": self.finish_reason is not None,
            "usage": {
                "prompt_tokens": len(self.prompt),
                "completion_tokens": self.said,
                "cached_tokens": 0,
            },
        }

    def result(self) -> dict[str, Any]:
        repeats = -(-self.said // len(self.prompt))
        text = "".join(islice(self.prompt * repeats, self.said))
        return {**self.summary(), "outputs": [self.output(text)]}


class EchoEngine:
    """Drives nothing: each step says one character of each running request."""

    mode = "echo"

    def __init__(self, engine_args: Mapping[str, Any], port: Port) -> None:
        args = _checked(engine_args, ARGUMENTS, "engine argument")
        self.info: dict[str, Any] = {"model": "echo", **args}
        self.roots = {"info": Root(lambda: dict(self.info))}
        self.running_limit = int(args["max_num_seqs"])
        self.capacity = 2 * self.running_limit
        self._args = args
        self._port = port
        self._running: dict[Key, _Generation] = {}
        self.steps = 0
        self.asleep = False
        self._verbs: dict[str, Callable[[Request], None]] = {
            "generate": self._generate,
            "chat": self._chat,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
            "echo": lambda request: port.finish(request.key, request.args),
            "sleep": self._sleep,
            "wake_up": self._wake_up,
            "fault": self._fault,
        }
        for ways in _all_ways(args["children"]):
            start_child(ways)
        for stage in range(args["load_stages"]):
            port.progress("loading", f"nothing to load, {stage + 1} of {args['load_stages']}")
            time.sleep(args["load_delay"] / args["load_stages"])
        _spin({"seconds": args["load_spin"]})
        if args["exit_on_load"]:
            sys.stderr.write("echo: told to die while loading\n")
            sys.stderr.flush()
            os._exit(args["exit_on_load"])
        if args["fail_load"]:
            raise StartupFailed(args["fail_load"], phase="load")

    @property
    def busy(self) -> bool:
        return bool(self._running) and not self.asleep

    def submit(self, request: Request) -> None:
        verb = self._verbs.get(request.verb)
        if verb is None:
            known = ", ".join(sorted(self._verbs))
            raise InvalidRequest.of(
                "verb", request.verb, f"unknown verb {request.verb!r}; known: {known}"
            )
        verb(request)

    def abort(self, key: Key) -> Partial:
        running = self._running.pop(key, None)
        if running is None:
            return Partial("waiting", 0, None)
        phase = "decode" if running.said else "waiting"
        return Partial(phase, running.said, running.result() if running.said else None)

    def stats(self) -> dict[str, Any]:
        return {"unfinished": len(self._running), "steps": self.steps}

    def run(self, port: Port) -> None:
        run_stepped(self, port)

    def step(self) -> None:
        """Say one character of each of the first `max_num_seqs` requests."""
        self.steps += 1
        if self._args["step_delay"]:
            time.sleep(self._args["step_delay"])
        for key in list(islice(self._running, self._args["max_num_seqs"])):
            running = self._running[key]
            text = running.say()
            if running.request.stream:
                self._port.delta(key, {"outputs": [running.output(text)]})
            if running.finish_reason is not None:
                del self._running[key]
                done = running.summary() if running.request.stream else running.result()
                self._port.finish(key, done)

    def close(self) -> None:
        self._running.clear()

    # Verbs.

    def _start(self, request: Request, prompt: str) -> None:
        given = request.args.get("sampling_params") or {}
        if not isinstance(given, dict):
            raise _refusal("sampling_params", given, "a map")
        params = _checked(given, SAMPLING, "sampling parameter")
        limit = params["max_tokens"]
        if limit is not None and (type(limit) is not int or limit < 1):
            raise _refusal("max_tokens", limit, "a whole number from 1, or None")
        room = self._args["max_model_len"]
        if not 0 < len(prompt) <= room:
            raise InvalidRequest.of(
                "prompt",
                len(prompt),
                f"the prompt has {len(prompt)} tokens; 1 to {room} are possible",
            )
        self._running[request.key] = _Generation(request, prompt, params)

    def _generate(self, request: Request) -> None:
        prompt = request.args.get("prompt")
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt", prompt.get("prompt_token_ids"))
        if isinstance(prompt, list):
            prompt = _text_of("prompt", prompt)
        self._start(request, _text("prompt", prompt))

    def _chat(self, request: Request) -> None:
        messages = request.args.get("messages")
        try:
            said = [str(message["content"]) for message in messages]  # type: ignore[union-attr]
        except (TypeError, LookupError):
            raise _refusal("messages", messages, "a list of maps with `content`") from None
        self._start(request, "\n".join(said))

    def _tokenize(self, request: Request) -> None:
        ids = [ord(char) for char in _text("prompt", request.args.get("prompt"))]
        self._port.finish(request.key, {"token_ids": ids, "count": len(ids)})

    def _detokenize(self, request: Request) -> None:
        text = _text_of("token_ids", request.args.get("token_ids"))
        self._port.finish(request.key, {"text": text})

    def _sleep(self, request: Request) -> None:
        self.asleep = True
        self._port.finish(request.key, None)

    def _wake_up(self, request: Request) -> None:
        self.asleep = False
        self._port.finish(request.key, not self.asleep)

    def _fault(self, request: Request) -> None:
        """Go wrong in the way that `kind` names."""
        kind = request.args["kind"]
        fault = _FAULTS.get(kind)
        if fault is None:
            known = ", ".join(_FAULTS)
            raise InvalidRequest.of("kind", shown(kind), f"unknown fault; known: {known}")
        self._port.finish(request.key, fault(request.args))


Fault = Callable[[Mapping[str, Any]], Any]


def _exit(args: Mapping[str, Any]) -> None:
    os._exit(int(args.get("status", 9)))


def _signal(args: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), int(args.get("signal", signal.SIGKILL)))


def _hang(args: Mapping[str, Any]) -> None:
    time.sleep(float(args.get("seconds", 3600)))


def _spin(args: Mapping[str, Any]) -> None:
    """Compute for so long, as a compilation does."""
    end = time.monotonic() + float(args["seconds"])
    while time.monotonic() < end:
        pass


def _grow(args: Mapping[str, Any]) -> None:
    _LEAKED.append(b"." * int(args["bytes"]))


def _say(args: Mapping[str, Any]) -> None:
    sys.stderr.write(str(args["text"]) + "\n")


def _raise(_args: Mapping[str, Any]) -> None:
    raise RuntimeError("told to raise")


def _child(args: Mapping[str, Any]) -> dict[str, Any]:
    """Start one that would outlive the worker if nobody cared."""
    return {"pid": start_child(_ways(args.get("ways", ())))}


_LEAKED: list[bytes] = []
_FAULTS: dict[str, Fault] = {
    "exit": _exit,
    "signal": _signal,
    "hang": _hang,
    "spin": _spin,
    "grow": _grow,
    "stderr": _say,
    "raise": _raise,
    "child": _child,
}


def _text(parameter: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refusal(parameter, value, "text, token ids or a map with one of them")
    return value


def _text_of(parameter: str, token_ids: Any) -> str:
    try:
        return "".join(map(chr, token_ids))
    except (TypeError, ValueError, OverflowError):
        raise _refusal(parameter, token_ids, "a list of character numbers") from None


def _ways(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not all(way in WAYS for way in value):
        raise _refusal("ways", value, f"a list of these: {', '.join(WAYS)}")
    return list(value)


def _all_ways(value: Any) -> list[list[str]]:
    if not isinstance(value, list | tuple):
        raise _refusal("children", value, "a list with the ways of each")
    return [_ways(ways) for ways in value]


def _refusal(parameter: str, value: Any, wanted: str) -> InvalidRequest:
    return InvalidRequest.of(
        parameter, shown(value), f"{parameter} is {wanted}, not {shown(value)}"
    )


def _checked(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    for name, value in given.items():
        if name not in known:
            raise InvalidRequest.of(
                name, value, f"unknown {what} {name!r}; the echo engine knows {', '.join(known)}"
            )
    return {**known, **given}
