"""Users of this host, and doing a part of root's work with another user's rights.

Root that writes below a directory of somebody else's follows links that they may have put there, and leaves files
behind that they cannot read. With their rights neither can happen: the kernel checks every step (credentials(7)).
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator


def find(name: str) -> pwd.struct_passwd | None:
    """The user of that name."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def name_of(number: int) -> str:
    """The name of a user, or the number of one who has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextlib.contextmanager
def acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    """Have the user's rights, and no others, within; only root can. None: stay who one is.

    The whole process changes, so nothing else may run in it meanwhile.
    """
    if user is None:
        yield
        return
    own_user, own_group, own_groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups([user.pw_gid])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(own_user)
        os.setegid(own_group)
        os.setgroups(own_groups)
