"""Start of the supervisor process: `python -m vllmport.pool.supervisor`.

The plan comes as JSON through a descriptor, so that it may hold secrets. Once it serves, or if it
cannot, it writes one line of JSON to the ready descriptor: `{"pid": …}` or `{"error": …}`.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import zmq

from vllmport.pool.endpoint import EndpointTaken, lock_endpoint, place_of
from vllmport.pool.plan import Plan
from vllmport.pool.reap import sweep
from vllmport.pool.supervisor.server import Supervisor
from vllmport.pool.supervisor.spawning import SpawnerFailed

logger = logging.getLogger("vllmport.supervisor")

LOCK_PATIENCE = 3.0
EXIT_NO_SPAWNER = 5
EXIT_TAKEN = 6


def main() -> int:
    """Read the plan, take the endpoint, serve."""
    parser = argparse.ArgumentParser(prog="vllmport.pool.supervisor", description=__doc__)
    parser.add_argument("--plan-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--lifeline-fd", type=int, default=-1)
    args = parser.parse_args()
    with os.fdopen(args.plan_fd) as pipe:
        plan = Plan.from_json(pipe.read())
    level = plan.log_level.upper()
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    # What workers inherit, unless their own environment says otherwise.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", level)
    os.environ["VLLMPORT_PROCESS_GROUP_KILL"] = str(int(plan.process_group_kill))
    place = place_of(plan.endpoint, Path(plan.run_dir).parent)
    try:
        lock = lock_endpoint(place, LOCK_PATIENCE, plan.endpoint)
    except EndpointTaken as exc:
        return _give_up(plan, args.ready_fd, str(exc))
    for fd in (args.ready_fd, args.lifeline_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)  # noqa: FBT003
    os.utime(plan.run_dir)  # it is not one that was forgotten
    found = sweep(Path(plan.run_dir).parent)
    try:
        supervisor = Supervisor(plan, lock, args.lifeline_fd)
    except zmq.ZMQError as exc:  # another program has the port, or the address is not ours
        _unlock(place)
        return _give_up(plan, args.ready_fd, f"cannot listen at {plan.endpoint}: {exc.strerror}")
    supervisor.report(found)
    _report(args.ready_fd, {"pid": os.getpid()})
    try:
        status = supervisor.run()
    except SpawnerFailed as exc:
        logger.error("%s", exc)
        _unlock(place)
        os._exit(EXIT_NO_SPAWNER)  # its sockets are in the middle of something
    _unlock(place)
    return status


def _unlock(place: Path) -> None:
    """Give the endpoint back, unless that went with the folder of the run."""
    Path(f"{place}.lock").unlink(missing_ok=True)


def _give_up(plan: Plan, ready_fd: int, why: str) -> int:
    _report(ready_fd, {"error": why})
    shutil.rmtree(plan.run_dir, ignore_errors=True)
    return EXIT_TAKEN


def _report(fd: int, message: dict[str, object]) -> None:
    if fd < 0:
        if "error" in message:
            sys.stderr.write(f"vllmport: {message['error']}\n")
        return
    with os.fdopen(fd, "w") as pipe:
        pipe.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    sys.exit(main())
