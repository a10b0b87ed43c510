"""Universal calls inside a worker: what may be reached, what travels, what is held and freed."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ffi_samples
from vllmport.bridge.board import SIZE, Board
from vllmport.bridge.codec import Ref, pack, unpack
from vllmport.bridge.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotAllowed,
    Overloaded,
    QuotaExceeded,
    SessionLost,
    VllmportError,
)
from vllmport.bridge.messages import Call, End, Error, Holds, Items, Message, decode, error_from
from vllmport.worker.universal.allow import EMPTY, AllowList
from vllmport.worker.universal.desk import Desk, Limits
from vllmport.worker.universal.introspect import describe
from vllmport.worker.universal.performing import Performer, Root
from vllmport.worker.universal.refs import Held, Refs
from vllmport.worker.universal.serialize import to_wire

SAMPLES = "ffi_samples"


def alive() -> int:
    """Return how many samples there are when the garbage of other tests is gone."""
    gc.collect()
    return ffi_samples.alive()


class Session:
    """One session without any thread: calls and their results as they would travel."""

    def __init__(self, *modules: str, limit: int = 1000, **roots: Root) -> None:
        allow = AllowList(EMPTY, modules or (SAMPLES,))
        self.refs = Refs("s", "m/0", limit)
        self.performer = Performer(lambda: allow, roots, self.refs)

    def do(self, verb: str, **args: Any) -> Any:
        thing, view = self.performer.perform(f"ffi.{verb}", args)
        return to_wire(thing, self.refs, view)

    def call(self, name: str, *args: Any, module: str = SAMPLES, **kwargs: Any) -> Any:
        return self.do("call", module=module, name=name, args=list(args), kwargs=kwargs)


@pytest.fixture
def session() -> Session:
    return Session()


# What may be reached.


def test_objects_are_made_read_changed_and_called(session: Session) -> None:
    thing = session.call("Thing", 21)
    assert isinstance(thing, Ref)
    assert (thing.session, thing.worker, thing.type) == ("s", "m/0", "ffi_samples.Thing")
    assert session.do("attr", ref=thing, name="value") == 21
    assert session.do("method", ref=thing, name="double") == 42
    assert session.do("set_attr", ref=thing, name="value", value="ab") is True
    assert session.do("method", ref=thing, name="double") == "abab"
    other = session.do("method", ref=thing, name="itself")
    assert session.do("method", ref=thing, name="same_as", args=[other]) is True
    assert session.do("attr", ref=session.call("Thing.twice", 3), name="value") == [3, 3]
    assert session.do("get", module=SAMPLES, name="Thing.kind") == "thing"


@pytest.mark.parametrize("name", ["__class__", "_secret", "__class__.__base__", "value.__len__"])
def test_names_that_are_not_public_are_refused(session: Session, name: str) -> None:
    thing = session.call("Thing", "x")
    for verb in ("attr", "method", "set_attr"):
        with pytest.raises(NotAllowed) as caught:
            session.do(verb, ref=thing, name=name, value=1)
        assert caught.value.name.startswith("_")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        (SAMPLES, "os.system"),
        (SAMPLES, "__builtins__"),
        (SAMPLES, "Thing.__subclasses__"),
        (SAMPLES, "Thing.mro"),
        (SAMPLES, "asyncio"),
        (SAMPLES, "weakref.ref"),
        (SAMPLES, "AsyncIterator"),
        (SAMPLES, "Thing.__init__.__globals__"),
        (SAMPLES, "worker.func_globals"),
        (SAMPLES, ""),
        (SAMPLES, "Thing..kind"),
        (SAMPLES, "no_such_name"),
        (f"{SAMPLES}.os", "system"),
        ("engine", "anything"),
    ],
)
def test_paths_that_leave_the_list_are_refused_at_every_step(
    session: Session, module: str, name: str
) -> None:
    for verb in ("call", "get"):
        with pytest.raises((NotAllowed, InvalidRequest)):
            session.do(verb, module=module, name=name)


def test_modules_functions_and_classes_are_not_handed_out(session: Session) -> None:
    thing = session.call("Thing")
    for verb, name in (
        ("method", "library"),
        ("method", "system"),
        ("method", "klass"),
        ("attr", "module"),
        ("attr", "double"),
        ("attr", "module.system"),
        ("method", "module.system"),
    ):
        with pytest.raises(NotAllowed):
            session.do(verb, ref=thing, name=name, args=[])
    with pytest.raises(NotAllowed):
        session.do("get", module=SAMPLES, name="Thing")
    held = len(session.refs)
    with pytest.raises(NotAllowed):
        session.call("module_inside")
    assert len(session.refs) == held


def test_what_is_of_no_listed_class_may_be_held_but_not_looked_into() -> None:
    session = Session(root=Root(lambda: Held))  # a class of this project
    with pytest.raises(NotAllowed):
        session.do("get", module="engine", name="root")
    session = Session(root=Root(weakref.WeakSet))
    opaque = session.do("get", module="engine", name="root")
    for verb in ("attr", "method"):
        with pytest.raises(NotAllowed):
            session.do(verb, ref=opaque, name="data")
    for verb in ("item", "iterate"):
        with pytest.raises(NotAllowed):
            session.do(verb, ref=opaque, key=0)
    thing = session.call("Thing", opaque)
    assert session.do("attr", ref=thing, name="value").number > opaque.number


def test_what_the_engine_offers_is_made_once_for_each_session() -> None:
    made = []

    def new() -> ffi_samples.Thing:
        made.append(ffi_samples.Thing(7))
        return made[-1]

    make = Root(new)
    session, other = Session(thing=make), Session(thing=make)
    first = session.do("get", module="engine", name="thing")
    again = session.do("get", module="engine", name="thing")
    assert session.do("method", ref=first, name="same_as", args=[again]) is True
    assert session.do("call", module="engine", name="thing.double") == 14
    other.do("get", module="engine", name="thing")
    assert len(made) == 2


def test_the_manifest_bounds_classes_that_inherit_much() -> None:
    made = describe([SAMPLES], library=SAMPLES, max_class_methods=3)
    assert set(made["classes"][f"{SAMPLES}.Engine"]["members"]) == {"kind"}
    full = describe([SAMPLES], library=SAMPLES)
    members = full["classes"][f"{SAMPLES}.Engine"]["members"]
    assert {"double", "twice", "later"} <= set(members)
    assert members["later"]["gives"] == "coroutine"
    assert full["functions"][f"{SAMPLES}.slowly"]["gives"] == "async generator"


def test_an_allow_list_of_a_manifest_knows_its_names_alone() -> None:
    manifest = describe([SAMPLES], library=SAMPLES)
    del manifest["classes"][f"{SAMPLES}.Thing"]["members"]["double"]
    del manifest["modules"][SAMPLES]["names"]["worker"]
    allow = AllowList(manifest)
    thing = allow.first(SAMPLES, "Thing")("x")
    assert allow.member(thing, "value") == "x"
    assert allow.member(thing, "itself")() is thing
    with pytest.raises(NotAllowed):
        allow.member(thing, "double")
    with pytest.raises(NotAllowed):
        allow.first(SAMPLES, "worker")


# What travels.


def test_containers_keep_their_shape_and_leaves_become_refs(session: Session) -> None:
    tree = session.call("tree")
    assert tree["plain"] == [1, (2.5, "x")]
    assert tree["set"] == {1, 2}
    assert isinstance(tree["thing"], Ref)
    assert tree["again"] == [tree["thing"]]
    assert len(session.refs) == 1
    assert unpack(*pack(tree)) == tree


def test_what_contains_itself_or_lies_too_deep_becomes_a_ref(session: Session) -> None:
    one, loop = session.call("cycle")
    assert (one, loop.type) == (1, "builtins.list")
    assert session.do("item", ref=loop, key=0) == 1
    found = session.call("deep", 100)
    for _ in range(11):
        (found,) = found
    assert [type(item) for item in found] == [Ref]


def test_a_result_of_many_elements_evicts_nothing() -> None:
    session = Session(limit=20_000)
    first = session.call("Thing", "first")
    things = session.call("things", 10_050)
    assert len({thing.number for thing in things}) == 10_050
    assert session.do("attr", ref=first, name="value") == "first"
    assert session.do("attr", ref=things[0], name="value") == 0
    assert session.do("attr", ref=things[-1], name="value") == 10_049


def test_a_quota_refuses_the_whole_result_and_keeps_nothing_of_it() -> None:
    session = Session(limit=10)
    first = session.call("Thing", "first")
    before = alive()
    with pytest.raises(QuotaExceeded) as caught:
        session.call("things", 10)
    assert caught.value.limit == 10
    del caught
    assert len(session.refs) == 1
    assert alive() == before
    assert session.do("attr", ref=first, name="value") == "first"


def test_releasing_frees_and_may_be_repeated(session: Session) -> None:
    before = alive()
    thing, other = session.call("Thing"), session.call("Thing", 2)
    session.do("release", refs=[thing.number])
    session.do("release", refs=[thing.number, 99])
    assert alive() == before + 1
    with pytest.raises(SessionLost):
        session.do("attr", ref=thing, name="value")
    assert session.do("get", module=SAMPLES, name="Thing.kind", released=[other.number])
    assert alive() == before


def test_a_ref_of_another_session_is_refused(session: Session) -> None:
    session.call("Thing")
    with pytest.raises(SessionLost):
        session.do("attr", ref=Ref("t", "m/0", 1, ""), name="value")


# The desk: threads, deadlines, streams.


class DeskBench:
    """A desk, and what it has sent."""

    def __init__(self, max_sessions: int = 4) -> None:
        self.sent: list[tuple[Message, Any]] = []
        allow = AllowList(EMPTY, (SAMPLES,))
        board = Board(bytearray(SIZE))
        limits = Limits(1000, max_sessions)
        self.desk = Desk("m/0", board, lambda: allow, {}, limits, self._send)

    def _send(self, frames: list[Any]) -> None:
        message, payload, buffers = decode(frames)
        self.sent.append((message, unpack(payload, buffers)))

    def call(
        self,
        call_id: int,
        verb: str,
        *,
        session: str = "s",
        window: int = 0,
        budget: int | None = None,
        **args: Any,
    ) -> None:
        header = Call(
            call_id, "m", f"ffi.{verb}", budget, window, client=1, attempt=1, session=session
        )
        self.desk.call(header, *pack({"module": SAMPLES, **args}))

    def until(self, condition: Callable[[], Any], timeout: float = 10.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"not within {timeout} s; sent {self.sent}"
            time.sleep(0.002)
            self.desk.collect()
            self.desk.expire(time.monotonic())

    def items(self, call_id: int) -> list[Any]:
        return [v[0] for m, v in self.sent if isinstance(m, Items) and m.entries[0][0] == call_id]

    def end_of(self, call_id: int) -> Any:
        """Wait for the end of a call: its value, or its error."""

        def ended() -> list[Any]:
            found: list[Any] = []
            for message, value in self.sent:
                if isinstance(message, End) and message.entries[0][0] == call_id:
                    found.append(value[0])
                elif isinstance(message, Error) and message.id == call_id:
                    found.append(error_from(message, value))
            return found

        self.until(ended)
        assert len(ended()) == 1
        return ended()[0]


@pytest.fixture
def bench() -> Iterator[DeskBench]:
    bench = DeskBench()
    yield bench
    for session in ("s", "t"):
        bench.desk.forget(session)


def test_coroutines_are_awaited(bench: DeskBench) -> None:
    bench.call(1, "call", name="fetch", args=[[1, "a"]])
    assert bench.end_of(1) == [1, "a"]


def test_an_exception_is_an_error_with_its_class(bench: DeskBench) -> None:
    bench.call(1, "call", name="fail", args=["on purpose"])
    error = bench.end_of(1)
    assert isinstance(error, VllmportError)
    assert error.details["class"] == "builtins.RuntimeError"
    assert "on purpose" in error.message
    assert error.worker == "m/0"


@pytest.mark.parametrize(("name", "args"), [("numbers", [10]), ("slowly", [10, 0.0])])
def test_generators_are_streamed_as_far_as_there_is_credit(
    bench: DeskBench, name: str, args: list[Any]
) -> None:
    bench.call(1, "call", name=name, args=args, window=3)
    bench.until(lambda: len(bench.items(1)) == 3)
    time.sleep(0.05)
    bench.desk.collect()
    assert len(bench.items(1)) == 3
    bench.desk.credit((1, 1), 20)
    assert bench.end_of(1) is None
    assert len(bench.items(1)) == 10
    entries = [m.entries[0] for m, _ in bench.sent if isinstance(m, Items)]
    assert entries == [[1, number] for number in range(10)]


def test_an_endless_stream_ends_when_it_is_cancelled(bench: DeskBench) -> None:
    bench.call(1, "call", name="endless", window=1_000_000)
    bench.until(lambda: len(bench.items(1)) > 100)
    bench.desk.cancel((1, 1))
    assert bench.end_of(1).code == "cancelled"


def test_a_stream_with_any_credit_pauses_while_nothing_is_sent(bench: DeskBench) -> None:
    bench.call(1, "call", name="endless", window=10**9)
    time.sleep(0.5)
    assert len(bench.desk._said) < 3000
    bench.until(lambda: len(bench.items(1)) > 5000)
    bench.desk.cancel((1, 1))
    assert bench.end_of(1).code == "cancelled"


def test_an_iterator_that_is_held_is_streamed_later(bench: DeskBench) -> None:
    bench.call(1, "call", name="numbers", args=[3])
    generator = bench.end_of(1)
    assert isinstance(generator, Ref)
    bench.call(2, "iterate", ref=generator, window=8)
    assert bench.end_of(2) is None
    assert bench.items(2) == [0, 1, 2]
    bench.call(3, "attr", ref=generator, name="gi_frame")
    assert isinstance(bench.end_of(3), NotAllowed)


def test_what_awaits_is_stopped_at_its_deadline(bench: DeskBench) -> None:
    bench.call(1, "call", name="Thing", args=[5])
    thing = bench.end_of(1)
    bench.call(2, "method", ref=thing, name="later", args=[60.0], budget=30)
    assert isinstance(bench.end_of(2), DeadlineExceeded)
    bench.call(3, "method", ref=thing, name="later", args=[0.0])
    assert bench.end_of(3) == 5


def test_what_computes_is_answered_when_it_lets_go_and_others_go_on(bench: DeskBench) -> None:
    bench.call(1, "call", name="compute", args=[3.0], budget=300)
    bench.call(2, "call", name="worker", budget=400)
    bench.call(3, "call", name="worker", session="t")
    assert bench.end_of(3) == ffi_samples.worker()
    assert isinstance(bench.end_of(2), DeadlineExceeded), "it had not begun"
    assert not [m for m, _ in bench.sent if isinstance(m, Error) and m.id == 1]
    assert isinstance(bench.end_of(1), DeadlineExceeded)


def test_the_end_of_a_session_frees_what_it_holds_and_nothing_else(bench: DeskBench) -> None:
    before = alive()
    bench.call(1, "call", name="things", args=[5])
    bench.call(2, "call", name="Thing", session="t")
    bench.end_of(1)
    bench.end_of(2)
    assert alive() == before + 6
    bench.desk.forget("s")
    bench.until(lambda: alive() == before + 1)


def test_a_session_that_ends_under_a_call_keeps_nothing_of_it(bench: DeskBench) -> None:
    before = alive()
    bench.call(1, "call", name="Thing")
    thing = bench.end_of(1)
    bench.call(2, "method", ref=thing, name="later", args=[60.0])
    time.sleep(0.05)
    bench.desk.forget("s")
    assert bench.end_of(2).code == "cancelled"
    bench.until(lambda: alive() == before)


def test_the_supervisor_is_told_when_a_session_begins_and_ends_to_hold(bench: DeskBench) -> None:
    bench.call(1, "get", name="Thing.kind")
    bench.end_of(1)
    bench.call(2, "call", name="Thing")
    thing = bench.end_of(2)
    bench.call(3, "call", name="Thing")
    other = bench.end_of(3)
    bench.call(4, "release", refs=[thing.number, other.number])
    bench.end_of(4)
    kinds = [type(message) for message, _ in bench.sent]
    told = [message for message, _ in bench.sent if isinstance(message, Holds)]
    assert told == [Holds("s", 1), Holds("s", 0)]
    assert kinds == [End, Holds, End, End, Holds, End], "told before what it is about"


def test_there_are_as_many_sessions_as_allowed() -> None:
    bench = DeskBench(max_sessions=1)
    bench.call(1, "get", name="Thing.kind")
    assert bench.end_of(1) == "thing"
    bench.call(2, "get", name="Thing.kind", session="t")
    assert isinstance(bench.end_of(2), Overloaded)
    bench.desk.forget("s")
    bench.call(3, "get", name="Thing.kind", session="t")
    assert bench.end_of(3) == "thing"
    bench.desk.forget("t")
