"""Guessed passwords have to wait: the arithmetic of the waits, and the real server's answers."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from feedback_helpers import free_port

from feedback.argilla.server.inside.accord_argilla.throttle import Throttle
from feedback.argilla.server.process import Server, start, stop


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_waits_double_from_one_second_to_five_minutes() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    waits = []
    for _ in range(15):
        throttle.add("name eve", free=5)
        waits.append(throttle.seconds_to_wait("name eve"))
        clock.seconds += waits[-1]
    assert waits == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert throttle.seconds_to_wait("name fred") == 0


def test_the_longest_wait_of_name_and_address_counts_and_time_passes() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(4):
        throttle.add("name eve", free=2)
    throttle.add("address 1", free=1)
    assert throttle.seconds_to_wait("name eve", "address 1") == 4
    clock.seconds += 3
    assert throttle.seconds_to_wait("name eve", "address 1") == 1
    assert throttle.seconds_to_wait("address 1") == 0


def test_success_and_an_hour_forget() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(3):
        throttle.add("name eve", free=2)
    throttle.forget("name eve")
    throttle.add("name eve", free=2)
    assert throttle.seconds_to_wait("name eve") == 0
    clock.seconds += 3601
    throttle.add("name eve", free=2)
    assert throttle.seconds_to_wait("name eve") == 0
    throttle.add("name eve", free=2)
    assert throttle.seconds_to_wait("name eve") == 1


def test_memory_is_bounded() -> None:
    throttle = Throttle(Clock())
    for number in range(10_500):
        throttle.add(f"name {number}", free=1)
    assert len(throttle.failures) == 10_000
    assert throttle.seconds_to_wait("name 10499") == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: others' log-ins come from this address too."""
    started = start(tmp_path_factory.mktemp("throttled"), free_port())
    yield started
    stop(started.home)


def log_in(server: Server, name: str, password: str, **options: object) -> httpx.Response:
    form = {"username": name, "password": password}
    return httpx.post(f"{server.url}/api/v1/token", **({"data": form} | options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_guessed_name_waits_and_others_do_not(server: Server) -> None:
    for _ in range(5):
        assert log_in(server, "eve", "wrong").status_code == 401
    refused = log_in(server, "eve", "wrong")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"detail": "too many failed log-ins; try again in 1 s"}
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert log_in(server, "owner", server.password).status_code == 201
    waits = [1]
    while waits[-1] < 4:  # the next wait is only as long as the tries between allow
        time.sleep(waits[-1])
        assert log_in(server, "eve", "wrong").status_code == 401
        waits.append(int(log_in(server, "eve", "wrong").headers["retry-after"]))
    assert waits == [1, 2, 4]
    # a form in the other encoding, or with a second name before, is counted under the name that counts
    parts = {"username": (None, "eve"), "password": (None, "wrong")}
    assert log_in(server, "", "", data=None, files=parts).status_code == 429
    trick = b'username=nobody&username=eve&password=wrong&x=\r\n\r\nname="username"\r\n\r\nnobody\r\n'
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert log_in(server, "", "", data=None, content=trick, headers=form).status_code == 429


@pytest.mark.slow
def test_many_guesses_at_once_all_count(server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda i: log_in(server, "mallory", f"guess {i}").status_code, range(12)))
    assert sorted(codes) == [401] * 5 + [429] * 7


@pytest.mark.slow
def test_an_address_that_tries_many_names_waits_and_a_success_forgets(server: Server) -> None:
    assert log_in(server, "owner", server.password).status_code == 201
    codes = [log_in(server, f"nobody-{i}", "wrong").status_code for i in range(21)]
    assert codes == [401] * 20 + [429]
    assert log_in(server, "owner", server.password).status_code == 429
    assert log_in(server, "owner", "", data=None, content=b"x" * 20_000).status_code in (413, 429)
