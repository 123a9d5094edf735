"""torch's switches go into the compiler's process."""

import json
import subprocess
import sys

from stepcache.packages.switches import switches

SCRIPT = """
import json, sys
from stepcache.packages.switches import set_switches, switches
set_switches(json.loads(sys.argv[1]))
print(json.dumps(switches()))
"""


def test_they_are_set_elsewhere():
    here = switches()
    assert here["deterministic"] is False and here["math"] is True
    wanted = {name: not value for name, value in here.items()}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)], capture_output=True, text=True, check=True
    )
    assert json.loads(process.stdout) == wanted
    assert switches() == here
