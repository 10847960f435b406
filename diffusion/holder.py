"""Who holds a lease: a worker, and the process that it lives in, so that its death is known as soon as it has happened.

    holder("server 5b1c")     "server 5b1c @7e0c.../pid:[4026531836]/712/88123"
    is_dead(that)             whether there is no such process any more

Ids of processes are used again; with the moment of its start a process has a name of its own. It means something
within one boot of a machine and one namespace of processes, as each container has: of all others nothing is known, nor
where the system does not tell (Linux does, proc(5)). Whoever is not known to be dead keeps the lease until it ends.
"""

import os
from functools import cache
from pathlib import Path


def holder(name: str, pid: int | None = None) -> str:
    """The name, and the process with this id, ours by default, as far as the system tells."""
    pid = pid or os.getpid()
    try:
        _, start = _state(pid)
        return f"{name} @{_here()}/{pid}/{start}"
    except OSError:
        return name


def is_dead(holder: str) -> bool:
    """Whether it is certain that its process has ended, be it that nobody has asked for its exit code yet."""
    _, at, process = holder.rpartition(" @")
    if not at:
        return False
    here, pid, start = process.rsplit("/", 2)
    try:
        if here != _here():
            return False
        os.kill(int(pid), 0)  # which tells also of those that this user may not look at
        state, found = _state(int(pid))
        return found != start or (state == "Z" and os.listdir(f"/proc/{pid}/task") == [pid])  # without a living thread
    except ProcessLookupError:
        return True
    except OSError:
        return False


@cache  # a worker with nothing to do looks twenty times a second
def _here() -> str:
    """The boot of the machine, and the namespace in which ids of processes are ours."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def _state(pid: int) -> tuple[str, str]:
    """What a process does, as R, S or Z, and when it started, in ticks since the boot."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]
