"""A child's work for tests: each problem says what becomes of it."""

import os

from benchmarks.processes import Message
from benchmarks.results import Row


def work(plan):
    if plan.problems[0]["becomes"] == "unthinkable":
        raise RuntimeError("on purpose")
    for index, spec in enumerate(plan.problems):
        yield Message(index=index, case=spec["name"])
        if spec["becomes"] == "killed":
            os.kill(os.getpid(), 9)
        elif spec["becomes"] == "late":
            yield Message(left_out={"why": "time", "reason": "the time was spent"})
        else:
            yield Message(rows=[Row(mode="ops", case=spec["name"], contender="a", role="ours", median=1.0)])
    yield Message(facts={"pids": [os.getpid()], "affinity": sorted(os.sched_getaffinity(0))})
