"""Programs that look for what a task must not find; each prints a line for what it found. Root runs them too."""

from __future__ import annotations

from typing import Final

#: What a task has of its daemon's: its orders, and the sockets of its own.
ORDERS: Final = "/var/lib/agentina/task/orders"
#: Processes are looked into by what /proc says of them; those that may be traced, in their memory too.
_SEEK: Final = """
import os, stat
marks = [text[::-1].encode() for text in {reversed!r}]
def look_into(process):
    try:
        with open(f"{{process}}/maps") as maps, open(f"{{process}}/mem", "rb", 0) as memory:
            for line in maps:
                first, last = (int(part, 16) for part in line.split()[0].split("-"))
                if line.split()[1].startswith("rw"):
                    memory.seek(first)
                    content = memory.read(min(last - first, 64 << 20))
                    if any(mark in content for mark in marks):
                        yield f"{{process}}/mem"
    except OSError:
        pass
for top in "/etc", "/var", "/run", "/root", "/home", "/srv", "/opt", "/mnt", "/media", "/tmp", "/dev/shm", "/proc":
    for here, below, names in os.walk(top):
        if here.startswith("/proc/"):
            below[:], names = [], [name for name in names if name in ("environ", "cmdline", "keys")]
            if {is_deep!r} and here != f"/proc/{{os.getpid()}}":
                print(*look_into(here), sep="\\n", end="")
        for name in names:
            try:
                descriptor = os.open(f"{{here}}/{{name}}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
                content = b""
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    content = os.read(descriptor, 1 << 20)
                if any(mark in content for mark in marks):
                    print(f"{{here}}/{{name}}")
                os.close(descriptor)
            except OSError:
                pass
"""
# Tries to connect to every socket that has a name, in the file system or beside it.
CONNECT: Final = """
import os, socket, stat
names = {line.split()[7] for line in open("/proc/net/unix") if len(line.split()) == 8}
for top in "/run", "/var", "/tmp", "/dev", "/etc", "/home", "/opt", "/srv":
    for here, _, files in os.walk(top):
        names |= {f"{here}/{name}" for name in files}
for name in sorted(names | {"@agentina-test-abstract", "/run/systemd/notify", "/run/systemd/private"}):
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET:
        try:
            if name.startswith("@") or stat.S_ISSOCK(os.stat(name).st_mode):
                address = "\\0" + name[1:] if name.startswith("@") else name
                socket.socket(socket.AF_UNIX, kind).connect(address)
                print(name)
        except OSError:
            pass
"""


def seek(*marks: str, is_deep: bool = False) -> str:
    """A program that finds ``marks`` in files below the usual places, and in processes; it does not find itself.

    Args:
        marks: What to look for.
        is_deep: Look into the memory of processes, where that is allowed.

    """
    return _SEEK.format(reversed=[mark[::-1] for mark in marks], is_deep=is_deep)
