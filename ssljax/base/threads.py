"""Threads of linear algebra libraries."""

import contextlib
import functools

import threadpoolctl


def single_threaded_blas() -> contextlib.AbstractContextManager[object]:
    """A context in which BLAS and LAPACK, which JAX calls on CPUs, use one thread.

    The threads of OpenBLAS wait actively for some 50 ms after a call. On a machine with few cores they double the time
    of short training steps that follow.
    """
    return _libraries().limit(limits=1, user_api="blas")


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()
