import threadpoolctl

from ssljax.base.threads import single_threaded_blas


def counts():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def test_blas_has_one_thread_in_the_context_and_as_many_as_before_after_it():
    with threadpoolctl.threadpool_limits(2, "blas"):
        with single_threaded_blas():
            assert counts() and set(counts()) == {1}
        assert set(counts()) == {2}
