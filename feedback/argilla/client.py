"""A connection to an Argilla server, embedded or any 2.8 deployment, over its REST API.

    client = connect("http://127.0.0.1:6900", api_key)
    dataset = client.dataset("round-1")
    for record in client.records(dataset["id"]): ...

Argilla's own Python client is not used: it drops the ranks of rankings, fails on a discarded answer without
values, and keeps one global connection. What accord needs is a dozen requests of the API that the web page itself
is built on.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from accord.errors import AccordError, UsageError

WORKSPACE = "accord"
RECORDS_PER_PAGE = 250
TRIES = 4

Json = dict[str, Any]
Revive = Callable[[], object]


@dataclass(frozen=True)
class Client:
    """An owner's session with one server; every method raises `AccordError` in one sentence when it fails."""

    url: str
    http: httpx.Client = field(repr=False)
    revive: Revive | None = field(default=None, repr=False)
    """Starts the server again when nothing answers; None for a server that is not ours to start."""

    def request(self, method: str, path: str, **options: Any) -> Any:
        """The JSON answer to one request; `path` is relative to `/api/v1/`.

        A lost connection or a server error is tried again, so a request that must not happen twice has to be one
        that the server refuses or merges the second time.

        Raises:
            AccordError: the server refuses the request or cannot be reached.
        """
        return request(self.http, method, path, **options)

    def workspace_id(self, workspace: str = WORKSPACE) -> str:
        """The id of a workspace, which is created when it is not there."""
        for known in self.request("GET", "me/workspaces")["items"]:
            if known["name"] == workspace:
                return known["id"]
        return self.request("POST", "workspaces", json={"name": workspace})["id"]

    def dataset(self, name: str, workspace: str = WORKSPACE) -> Json | None:
        """The dataset of this name in a workspace, or None."""
        workspace_id = self.workspace_id(workspace)
        found = self.request("GET", "me/datasets", params={"workspace_id": workspace_id})["items"]
        return next((dataset for dataset in found if dataset["name"] == name), None)

    def existing_dataset(self, name: str, workspace: str = WORKSPACE) -> Json:
        """The dataset of this name in a workspace.

        Raises:
            AccordError: there is none, or its creation was interrupted.
        """
        dataset = self.dataset(name, workspace)
        if dataset is None or dataset["status"] != "ready":
            raise AccordError(f"{self.url} has no dataset '{name}'; push the comparisons to it first")
        return dataset

    def records(self, dataset_id: str, with_responses: bool = False) -> Iterator[Json]:
        """Every record of a dataset, in the order of insertion.

        Raises:
            AccordError: records were added or removed while they were being read.
        """
        seen: set[str] = set()
        offset = 0
        while True:
            params: Json = {"offset": offset, "limit": RECORDS_PER_PAGE}
            if with_responses:
                params["include"] = "responses"
            page = self.request("GET", f"datasets/{dataset_id}/records", params=params)
            for record in page["items"]:
                if record["id"] not in seen:
                    seen.add(record["id"])
                    yield record
            offset += len(page["items"])
            if not page["items"] or offset >= page["total"]:
                break
        if len(seen) != page["total"]:
            raise AccordError("the dataset's records changed while they were read; run the command again")

    def users(self) -> list[Json]:
        """Every user of the server, with id, username and role."""
        return self.request("GET", "users")["items"]

    def set_up_annotator(
        self, username: str, password: str | None = None, workspaces: Sequence[str] = (WORKSPACE,)
    ) -> str:
        """Make sure that an annotator of this name exists in these workspaces, and return the password.

        The password is set to `password`, or to a new random one. An annotator who exists keeps every answer;
        only the password changes.

        Raises:
            AccordError: the name belongs to an owner or admin.
        """
        user = self.user(username)
        if user is not None and user["role"] != "annotator":
            raise AccordError(
                f"the user '{username}' is no annotator but {user['role']}; choose another name"
            )
        password = password or new_password()
        if user is None:
            user = self.add_user(username, "annotator", password)
        else:
            self.request("PATCH", f"users/{user['id']}", json={"password": password})
        for workspace in workspaces:
            self.join(user, workspace)
        return password

    def user(self, username: str) -> Json | None:
        """The user of this name, or None."""
        return next((user for user in self.users() if user["username"] == username), None)

    def add_user(self, username: str, role: str, password: str) -> Json:
        """A new user; `role` is annotator or admin."""
        new = {"username": username, "first_name": username, "role": role, "password": password}
        return self.request("POST", "users", json=new)

    def join(self, user: Json, workspace: str) -> None:
        """Make a user a member of a workspace, which is created when it is not there."""
        workspace_id = self.workspace_id(workspace)
        members = self.request("GET", f"workspaces/{workspace_id}/users")["items"]
        if user["id"] not in [member["id"] for member in members]:
            self.request("POST", f"workspaces/{workspace_id}/users", json={"user_id": user["id"]})


def new_password() -> str:
    """A random password."""
    return secrets.token_urlsafe(12)


def workspace_of(annotator: str) -> str:
    """The workspace of what is assigned to this annotator; what is assigned to nobody is in `WORKSPACE`."""
    return f"{WORKSPACE}-{annotator}"


def owner_key(url: str) -> str:
    """The key of an Argilla that somebody else runs, from the environment.

    Raises:
        UsageError: there is none.
    """
    key = os.environ.get("ARGILLA_API_KEY")
    if not key:
        raise UsageError(f"set ARGILLA_API_KEY to an owner's key of {url}")
    return key


def connect(url: str, api_key: str, revive: Revive | None = None) -> Client:
    """A session as the owner whose API key is given.

    Raises:
        AccordError: nothing answers at the URL, it is no Argilla 2, or the key is not an owner's.
    """
    http = open_http(url, {"X-Argilla-Api-Key": api_key}, revive)
    client = Client(url=url.rstrip("/"), http=http, revive=revive)
    version = client.request("GET", "version").get("version", "")
    if not version.startswith("2."):
        raise AccordError(f"{url} runs Argilla {version}; accord needs Argilla 2.8")
    me = client.request("GET", "me")
    if me["role"] != "owner":
        raise AccordError(
            f"the API key given for {url} is {me['role']} '{me['username']}'s; use an owner's key"
        )
    return client


def log_in(url: str, username: str, password: str, revive: Revive | None = None) -> httpx.Client:
    """A session as the web page opens it: name and password are exchanged for a token.

    Raises:
        AccordError: nothing answers at the URL, or the password is wrong.
    """
    http = open_http(url, {}, revive)
    token = request(http, "POST", "token", data={"username": username, "password": password})
    http.headers["Authorization"] = f"Bearer {token['access_token']}"
    return http


def open_http(url: str, headers: dict[str, str], revive: Revive | None = None) -> httpx.Client:
    """An HTTP client for the server's API; a proxy from the environment is left out for a server on this machine."""
    base_url = httpx.URL(url.rstrip("/") + "/api/v1/")
    is_local = base_url.host in ("127.0.0.1", "localhost", "::1")
    transport = _Reviving(revive) if revive else None
    return httpx.Client(
        base_url=base_url, headers=headers, timeout=60.0, trust_env=not is_local, transport=transport
    )


class _Reviving(httpx.HTTPTransport):
    """Sends requests; when nothing answers, the server is started again before the next try."""

    def __init__(self, revive: Revive) -> None:
        super().__init__()
        self.revive = revive

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return super().handle_request(request)
        except httpx.ConnectError:
            self.revive()
            return super().handle_request(request)


def request(http: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """As `Client.request`, for any session."""
    last = ""
    for number in range(TRIES):
        if number:
            time.sleep(0.25 * 2**number)
        try:
            response = http.request(method, path, **options)
        except httpx.TransportError as error:
            last = f"cannot be reached ({error}); is the server running?"
            continue
        except httpx.InvalidURL as error:
            raise AccordError(f"{http.base_url} is no URL of an Argilla server ({error})") from None
        if response.status_code >= 500:
            last = f"fails on {method} {path} (status {response.status_code}: {response.text[:200]}); see its log"
            continue
        if response.status_code == 401:
            raise AccordError(
                f"Argilla at {http.base_url.host} refuses the log-in; check the API key or password"
            )
        if response.is_error:
            raise RefusedError(f"Argilla refused {method} {path}: {_reason(response)}", response.status_code)
        if response.status_code == 204:
            return None
        try:
            return response.json()
        except ValueError:
            raise AccordError(
                f"{http.base_url} does not answer like Argilla's API; check the URL (it must not end in /api)"
            ) from None
    raise AccordError(f"Argilla at {http.base_url} {last}")


class RefusedError(AccordError):
    """The server understood the request and refused it."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


def _reason(response: httpx.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}, {response.text[:200]}"
    return f"status {response.status_code}, {str(detail)[:300]}"
