"""Requests to a server that scores, judges or writes: retries, a key that stays secret, and a few at a time."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import httpx

from accord.errors import AccordError, UsageError
from accord.progress import progress

KEY = "OPENAI_API_KEY"
"""The environment variable that holds the key of a server that speaks OpenAI's protocol."""
SECONDS_BETWEEN_TRIES: tuple[float, ...] = (1, 2, 4, 8)
LONGEST_WAIT_SECONDS = 60.0
"""However long a server asks to be left alone."""
SECONDS_TO_CONNECT = 10.0
SECONDS_FOR_AN_ANSWER = 120.0
TRANSIENT = {408, 429, 500, 502, 503, 504}
"""HTTP status codes that a busy server, or a proxy before it, gives."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Endpoint:
    """An HTTP server; the key in the environment variable `key_variable`, if there is one, goes to it alone."""

    def __init__(self, url: str, key_variable: str) -> None:
        """Nothing is sent yet.

        Raises:
            UsageError: it is no plain http or https URL; one with a password would stand in records.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            raise UsageError(f"'{url}' is no URL") from None
        if parsed.userinfo or parsed.query:
            raise UsageError(
                f"the URL of {parsed.host} must hold no user, password or question mark, because it is written into "
                f"records; put the key into {key_variable}"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"'{url}' is no URL; write http://host:port or https://host/path")
        self.url = url.rstrip("/")
        self.key_variable = key_variable
        self._key = os.environ.get(key_variable, "")
        self._given_up = threading.Event()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(SECONDS_FOR_AN_ANSWER, connect=SECONDS_TO_CONNECT, pool=None),
            # a proxy from the environment is left out for a server on this machine
            trust_env=parsed.host not in ("127.0.0.1", "localhost", "::1"),
        )

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers; a busy or silent server is asked again, after longer and longer waits.

        Raises:
            AccordError: no answer after several tries, a wrong key, a refusal, or an answer that is no JSON.
        """
        reason = ""
        for seconds in (*SECONDS_BETWEEN_TRIES, None):
            wait = seconds or 0.0
            try:
                response = self._http.post(f"{self.url}{path}", json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if response.status_code == 200:
                    try:
                        return response.json()
                    except ValueError:
                        raise AccordError(
                            f"{self.url}{path} answered with something that is no JSON"
                        ) from None
                if response.status_code in (401, 403):  # what it says may hold a part of the key
                    raise self._wants_another_key(response.status_code)
                reason = f"HTTP {response.status_code}: {self._message(response)}"
                if response.status_code not in TRANSIENT:
                    raise AccordError(f"{self.url}{path} refused a request ({reason})")
                wait = max(wait, _asked_to_wait(response))
            if seconds is not None and self._given_up.wait(min(wait, LONGEST_WAIT_SECONDS)):
                break
        raise AccordError(
            f"{self.url} does not answer ({reason}, {len(SECONDS_BETWEEN_TRIES) + 1} tries); look whether it runs, "
            "then run the same command again"
        )

    def chat(self, body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """A chat completion: the text of the first choice, that choice, and the tokens used, as the protocol has them.

        Raises:
            AccordError: as `post`, or the server does not speak the protocol.
        """
        response = self.post("/chat/completions", body)
        try:
            (choice, *_) = response["choices"]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("its content is no text")
            return text, choice, dict(response.get("usage") or {})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.no_completion(error) from None

    def no_completion(self, error: Exception) -> AccordError:
        """What to say of an answer that is none."""
        return AccordError(
            f"{self.url} answered with something that is no chat completion ({type(error).__name__}: "
            f"{error}); give the URL up to and with /v1, of a server that speaks the OpenAI protocol"
        )

    def check_answers(self) -> None:
        """Ask once, for the list of models, which every server that speaks OpenAI's protocol has.

        Raises:
            AccordError: nothing answers, or the key is wrong; another refusal proves nothing.
        """
        try:
            response = self._http.get(f"{self.url}/models", timeout=SECONDS_TO_CONNECT)
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise AccordError(
                f"{self.url} does not answer ({reason}); look whether it runs, and whether the address is right"
            ) from None
        if response.status_code in (401, 403):
            raise self._wants_another_key(response.status_code)

    def _wants_another_key(self, status: int) -> AccordError:
        has = f"the one in {self.key_variable}" if self._key else "none"
        return AccordError(
            f"{self.url} wants another API key than {has} (HTTP {status}); set {self.key_variable} to the server's own"
        )

    def in_parallel(
        self, ask: Callable[[ItemT], ResultT], items: Sequence[ItemT], at_a_time: int, what: str
    ) -> list[ResultT]:
        """`ask` of every item, in order, with a few requests under way at a time; the first error ends them all."""
        pool = ThreadPoolExecutor(at_a_time)
        self._given_up.clear()
        try:
            futures = [pool.submit(ask, item) for item in items]
            with progress(what, len(items)) as update:
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    update(done)
            return [future.result() for future in futures]
        except BaseException:
            self._given_up.set()  # nobody waits for another try of theirs
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _message(self, response: httpx.Response) -> str:
        """What a refusal says: the protocol's errors are {"error": {"message": ...}}."""
        try:
            error = response.json()["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            text = response.text
        return (text.replace(self._key, "***") if self._key else text)[:200]


def _asked_to_wait(response: httpx.Response) -> float:
    """The seconds in a Retry-After header, 0 without one."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:  # a date
        return 0.0
