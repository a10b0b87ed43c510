"""What a driver knows of a call that is open. Imports nothing of vLLM itself."""

from typing import TYPE_CHECKING, Any

from vllmport.worker.engine import Request

if TYPE_CHECKING:
    from vllmport.worker.engines.vllm_plans import Plan


class Call:
    """One request between `submit` and its end, or one part of a call that has a plan.

    Attributes:
        name: What the engine knows it by; never used twice.
        tokens: Tokens already put to its stream.
        prompt_logprobs: vLLM gives them once, with the first delta of a stream.
        notes: What was translated in its arguments.
        task: What consumes its outputs, in the driver that has tasks.
        plan: What says which parts come next.
        parts: Those that run now; `outputs` has what they gave, in their order.
        whole: The call that this is a part of.
    """

    __slots__ = (
        "key",
        "name",
        "notes",
        "outputs",
        "parts",
        "plan",
        "priority",
        "prompt_logprobs",
        "request_id",
        "stream",
        "task",
        "tokens",
        "whole",
    )

    def __init__(self, request: Request, name: str) -> None:
        self.key = request.key
        self.request_id = request.request_id
        self.stream = request.stream
        self.priority = request.priority
        self.name = name
        self.tokens = 0
        self.prompt_logprobs: list[Any] | None = None
        self.notes: list[str] = []
        self.task: Any = None
        self.plan: Plan | None = None
        self.parts: list[Call] = []
        self.outputs: dict[str, Any] = {}
        self.whole: Call | None = None

    def part(self, number: int) -> "Call":
        """Make one of the requests that this call's plan asks for next."""
        request = Request(self.key, "", {}, stream=False, priority=self.priority, request_id="")
        part = Call(request, f"{self.name}.{self.tokens}.{number}")
        part.whole = self
        return part
