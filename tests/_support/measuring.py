"""What tests of benchmarks share: plans of a command line, and rows of a problem or of a child process."""

from benchmarks import cli
from benchmarks.devices import Device
from benchmarks.processes import messages
from benchmarks.runner import Measurement
from benchmarks.timing import QUICK


def plans(words):
    """Of ``python -m benchmarks`` and these words."""
    words = words.split()
    return cli._module(words[0]).plans(cli._parser(words[0]).parse_args(words))


def measured(problem, *ceilings, device=None, **options):
    """Rows by contender and pass, measured in this process."""
    found = Measurement(device or Device(), QUICK, *ceilings, **options).rows(problem)
    return {(row.contender, row.which): row for row in found}


def reported(plan):
    """Rows that a child process reports, which has no problem."""
    found = list(messages(plan))
    assert [message.problem for message in found if message.problem] == []
    return [row for message in found for row in message.rows if row.role != "ceiling"]
