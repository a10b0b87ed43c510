"""One session's thread: its calls run there, one computing at a time, beside the engine's loop.

An asyncio loop: what is awaited or streamed takes turns, what computes has the thread to itself
until it returns. What comes of a job is handed to `post`, from this thread.
"""

import asyncio
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from vllmport.bridge.codec import Packed, pack
from vllmport.worker.engine import Key
from vllmport.worker.universal.performing import Performer
from vllmport.worker.universal.refs import Refs
from vllmport.worker.universal.serialize import to_wire

_PAUSE: Final = 0.002
"""Seconds that a stream waits for what is said to be sent."""


class Item(NamedTuple):
    """One more item of a stream, packed: an array of one."""

    key: Key
    packed: Packed


class Outcome(NamedTuple):
    """A job has ended: with a packed result, an array of one, or with an error."""

    key: Key
    packed: Packed | None
    error: BaseException | None = None


class Job:
    """One call, as the room has it.

    Attributes:
        window: Credit to begin with; 0 where no stream is wanted.
        task: What runs it; None until it has begun.
        dropped: Whether it was given up before that.
    """

    def __init__(self, key: Key, verb: str, args: Mapping[str, Any], window: int) -> None:
        self.key = key
        self.verb = verb
        self.args = args
        self.window = window
        self.credit = asyncio.Semaphore(window)
        self.task: asyncio.Task[None] | None = None
        self.dropped = False


class Room:
    """The thread of one session.

    Args:
        session: Its name.
        performer: Does the calls.
        refs: What the session holds.
        post: Is given items and outcomes.
        crowded: Tells whether so much waits to be sent that streams should pause.
    """

    def __init__(
        self,
        session: str,
        performer: Performer,
        refs: Refs,
        post: Callable[[Item | Outcome], None],
        crowded: Callable[[], bool],
    ) -> None:
        self.refs = refs
        self._performer = performer
        self._post = post
        self._crowded = crowded
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them weakly
        name = f"session {session}"[:15]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # Called by the worker's thread.

    def submit(self, job: Job) -> None:
        """Begin a job once the thread is free."""
        self._loop.call_soon_threadsafe(self._begin, job)

    def give_up(self, job: Job) -> bool:
        """Give a job up; True if it had not begun, else its outcome comes later."""
        with self._lock:
            job.dropped = True
            if job.task is None:
                return True
        self._loop.call_soon_threadsafe(job.task.cancel)
        return False

    def grant(self, job: Job, room: int) -> None:
        """Let a stream send more items."""
        self._loop.call_soon_threadsafe(_release, job.credit, room)

    def close(self) -> None:
        """Let go of everything at once; the thread ends when nothing computes in it any more."""
        self.refs.end()
        self._performer.forget()
        self._loop.call_soon_threadsafe(self._loop.stop)

    # The room's own thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _begin(self, job: Job) -> None:
        self._tasks.add(task := self._loop.create_task(self._do(job)))
        task.add_done_callback(self._tasks.discard)

    async def _do(self, job: Job) -> None:
        with self._lock:
            if job.dropped:
                return
            job.task = asyncio.current_task()
        try:
            packed = pack([await self._result(job)])
        except asyncio.CancelledError as exc:
            self._post(Outcome(job.key, None, exc))
        except Exception as exc:  # noqa: BLE001  # whatever the library raises belongs to the call
            self._post(Outcome(job.key, None, exc))
        else:
            self._post(Outcome(job.key, packed))

    async def _result(self, job: Job) -> Any:
        """Do a call to its end; return what travels as its result."""
        thing, view = self._performer.perform(job.verb, job.args)
        if inspect.isawaitable(thing):
            thing = await thing
        if job.window and hasattr(thing, "__anext__"):
            return await self._stream(job, thing, anext)
        if job.window and hasattr(thing, "__next__"):
            return await self._stream(job, thing, _next)
        return to_wire(thing, self.refs, view)

    async def _stream(self, job: Job, source: Any, following: Callable[[Any, Any], Any]) -> None:
        """Send what a source gives, one by one, when there is credit."""
        while True:
            await job.credit.acquire()
            await asyncio.sleep(0)  # let others have a turn, and a cancel arrive
            while self._crowded():  # noqa: ASYNC110  # another thread makes room
                await asyncio.sleep(_PAUSE)
            item = following(source, _END)
            if inspect.isawaitable(item):
                item = await item
            if item is _END:
                return
            self._post(Item(job.key, pack([to_wire(item, self.refs)])))


_END: Any = object()


def _next(source: Any, end: Any) -> Any:
    return next(source, end)


def _release(credit: asyncio.Semaphore, room: int) -> None:
    for _ in range(room):
        credit.release()
