"""Disk: telling a full one from other failures, whatever the library that met it makes of it."""

import errno
import os


def full_disk(error: BaseException | None) -> OSError | None:
    """The full disk behind an error of another type: libraries in C++ and Rust report it in words of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            return error
        for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            if os.strerror(number) in str(error) or f"code: {number}," in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None
