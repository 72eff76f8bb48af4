"""What settings become."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils import composition


@pytest.mark.parametrize("name", ["get_service", "get_outbox", "get_leases", "get_permits", "get_courier"])
def test_everything_is_built_once_by_many_threads(name: str) -> None:
    build = getattr(composition, name)
    together = threading.Barrier(16)

    def first() -> object:
        together.wait()
        return build()

    with ThreadPoolExecutor(16) as pool:
        built = [future.result() for future in [pool.submit(first) for _ in range(16)]]
    assert len({id(one) for one in built}) == 1
