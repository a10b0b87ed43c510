"""A program that uses a pool, told what to do on its standard input: the owner, or a client.

Started as `python -m chaos.caller POLICY` to own a pool, or `… join ENDPOINT`. One JSON map a line
goes in and comes out; every order is done by a thread of its own, and says once how it ended.
"""

import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from vllmport.pool import LLM, Pool, VllmportError

RETRY = 0.01
"""Seconds between two looks at the pool's status, and between two tries of a call."""


class Caller:
    """The pool of this program and what it does with it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._voice = threading.Lock()
        self._handles: dict[str, LLM] = {}

    def say(self, order: Any, **said: Any) -> None:
        """Write one line."""
        with self._voice:
            sys.stdout.write(json.dumps({"order": order, **said}) + "\n")
            sys.stdout.flush()

    def run(self) -> None:
        """Do what comes in, until nothing more can come."""
        status = self._pool.status()
        pids = {name: status[name]["pid"] for name in ("supervisor", "spawner")}
        self.say(0, endpoint=self._pool.endpoint, **pids)
        for line in sys.stdin:
            order = json.loads(line)
            threading.Thread(target=self._obey, args=(order,), daemon=True).start()

    def _obey(self, order: Mapping[str, Any]) -> None:
        number = order["order"]
        try:
            end = getattr(self, f"do_{order['do']}")(number, order)
        except VllmportError as exc:
            end = {"end": exc.code, "retryable": exc.retryable, "text": str(exc)[:500]}
        self.say(number, **{"end": "done", **(end or {})})

    # Orders. What they return is said at their end.

    def do_load(self, _: int, order: Mapping[str, Any]) -> None:
        """Load the model and wait until it is ready."""
        self._handle(order, wait=True)

    def do_ask(self, number: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a question while the model still loads."""
        handle = self._pool.llm(name=order["name"], wait=False, **order["load"])
        self.say(number, sent=True)
        return {"answer": _ask(handle, order)}

    def do_stream(self, number: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """Read a stream to its end, and look whether it ends again."""
        params = {"temperature": 0, "ignore_eos": True, "max_tokens": order["tokens"]}
        stream = self._handle(order, wait=True).stream(order["prompt"], params)
        count = 0
        try:
            for delta in stream:
                if not count:
                    self.say(number, first=True)
                count += len(delta.token_ids)
        finally:
            for _ in stream:
                self.say(number, problem="a stream went on after its end")
        return {"tokens": count}

    def do_unload(self, _: int, order: Mapping[str, Any]) -> None:
        """Unload the model, whoever uses it."""
        self._handles.pop(order["name"], None)
        self._pool.unload(order["name"])

    def do_until(self, _: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """Wait until a worker is where it is wanted; say whether it came there, and where it is."""
        end = time.monotonic() + order["within"]
        while True:
            worker: dict[str, Any] = next(iter(self._pool.status()["workers"]), {})
            found = {key: worker.get(key) for key in ("pid", "state", "stage")}
            if worker.get("pid") and _matches(worker, order):
                return {"there": True, **found}
            if time.monotonic() > end:
                return {"there": False, **found}
            time.sleep(RETRY / 4)

    def do_ready(self, _: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model and wait until all its workers are ready; say their pids."""
        if order["name"] not in self._handles:
            self._handle(order, wait=True)
        end = time.monotonic() + order["within"]
        while True:
            workers = self._pool.status()["workers"]
            if all(worker["state"] == "READY" for worker in workers):
                return {"workers": [worker["pid"] for worker in workers]}
            if time.monotonic() > end:
                return {"end": "not ready"}
            time.sleep(RETRY)

    def do_status(self, _: int, __: Mapping[str, Any]) -> dict[str, Any]:
        """Say which processes the pool has."""
        status = self._pool.status()
        pids = {name: status[name]["pid"] for name in ("supervisor", "spawner")}
        return {**pids, "workers": [worker["pid"] for worker in status["workers"]]}

    def do_serve(self, _: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """Try until the model answers as it should; say what went wrong before."""
        end = time.monotonic() + order["within"]
        errors: list[str] = []
        while True:
            try:
                answer = _ask(self._handle(order, wait=True), order)
            except VllmportError as exc:
                errors.append(exc.code if exc.retryable else f"{exc.code}, not to be retried")
                if not exc.retryable:  # it may have been unloaded
                    self._handles.pop(order["name"], None)
            else:
                return {"answer": answer, "errors": sorted(set(errors))}
            if time.monotonic() > end:
                return {"end": "no service", "errors": sorted(set(errors))}
            time.sleep(RETRY)

    def _handle(self, order: Mapping[str, Any], *, wait: bool) -> LLM:
        name = order["name"]
        handle = self._handles.get(name)
        if handle is None:
            handle = self._pool.llm(name=name, wait=wait, **order["load"])
            self._handles[name] = handle
        return handle


def _ask(handle: LLM, order: Mapping[str, Any]) -> str:
    params = {"temperature": 0, "max_tokens": 16}
    (result,) = handle.generate(order["question"], params, timeout=order["within"])
    return result.outputs[0].text


def _matches(worker: Mapping[str, Any], order: Mapping[str, Any]) -> bool:
    """Compare with what is wanted; a stage is followed by what there is to say about it."""
    return all(worker[key].startswith(order[key]) for key in ("state", "stage") if key in order)


def main(argv: list[str]) -> None:
    """Own a pool, or join one, and do what is told."""
    if argv[0] == "join":
        with Pool.connect(argv[1]) as pool:
            Caller(pool).run()
    else:
        with Pool(policy=json.loads(argv[0])) as pool:
            Caller(pool).run()


if __name__ == "__main__":
    main(sys.argv[1:])
