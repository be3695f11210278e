"""Reads what JAX's C++ parts write to stderr, and passes on what a user can use.

A process whose peers are gone, or never came, is ended from within these parts, which explain it in
a page of gRPC and addresses; that becomes one line, the first argument or the second. The process
itself may have been faster to say the first. Started by `processes`, as a program of its own: it
outlives the process.
"""

import re
import signal
import sys

# A line of their log, such as "E1125 15:58:37.892396    4329 coordination_service_agent.cc:289] …".
LINE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\S* +\d+ (?P<file>\S+):\d+\] ")
OURS = re.compile(r"coordination|client\.h|preemption|gloo|distributed|grpc", re.IGNORECASE)
END = "the JAX distributed service detected fatal errors"
JOIN = "/RegisterTask"  # what failed was the start


def main() -> None:
    """Passes lines on until the process that writes them has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when the process does
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gone, never_came = sys.argv[1:]
    dropping = fatal = joining = said = False
    for line in sys.stdin.buffer:
        text = line.decode(errors="replace")
        match = LINE.match(text)
        if match:
            dropping = bool(OURS.search(match["file"]))
        fatal |= bool(match) and END in text
        joining |= fatal and JOIN in text
        if text.strip() == gone:
            said = True
            print(gone, file=sys.stderr, flush=True)
        elif not dropping:
            sys.stderr.write(text)
            sys.stderr.flush()
    if fatal and not said:
        print(never_came if joining else gone, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
