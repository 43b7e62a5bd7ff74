"""Accounts for the people who annotate. A password is shown once, when its account is made, and kept nowhere.

A team is a YAML file:

    users:
      - name: alice
      - name: bob
        workspaces: [pilot]     # besides those that accord's records stand in
      - name: dana
        role: admin             # sees everybody's answers, and is given no records; annotators are the others
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from accord.config import Config, load_yaml
from accord.errors import DataError, UsageError
from accord.text_files import describe, read_text
from feedback.argilla.client import WORKSPACE, Client, new_password, workspace_of
from feedback.argilla.simulate import SIMULATED_ANNOTATORS
from feedback.config import AnnotationConfig


class Person(Config):
    """One account."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """As it is typed at the log-in: letters, digits, - and _."""
    role: Literal["annotator", "admin"] = "annotator"
    workspaces: tuple[str, ...] = ()
    """Besides those that the records to annotate stand in."""


class UsersFile(Config):
    """The content of a users file."""

    users: tuple[Person, ...] = Field(min_length=1)

    @field_validator("users")
    @classmethod
    def _names_differ(cls, users: tuple[Person, ...]) -> tuple[Person, ...]:
        names = [user.name for user in users]
        if len(set(names)) < len(names):
            raise ValueError(f"the name '{next(n for n in names if names.count(n) > 1)}' stands twice")
        return users


@dataclass(frozen=True)
class Team:
    """Who answers, and who needs an account for it."""

    people: tuple[Person, ...]
    """Everybody who needs an account; nobody where programs annotate."""
    annotators: tuple[str, ...]
    """The names of those among whom records are distributed."""
    adjudicators: tuple[str, ...] = ()

    def check_enough(self, annotators_per_record: int) -> None:
        """Refuse to assign records to more annotators than there are.

        Raises:
            UsageError: with both numbers.
        """
        if len(self.annotators) < annotators_per_record:
            raise UsageError(
                f"feedback.annotators_per_record is {annotators_per_record}, but there are only "
                f"{len(self.annotators)} annotators to assign records to"
            )


SIMULATED_TEAM = Team((), tuple(annotator.username for annotator in SIMULATED_ANNOTATORS))


def team_of(users: Path | None, names: Sequence[str], adjudicators: Sequence[str]) -> Team:
    """The people of a users file, or of these names where there is none, and the adjudicators.

    Annotators are all with that role but the adjudicators.

    Raises:
        DataError: the users file is missing or bad; the message names file and field.
        UsageError: a name cannot be an account's.
    """
    people = _read(users) if users else _persons(names)
    known = {person.name for person in people}
    return Team(
        people=(*people, *(person for person in _persons(adjudicators) if person.name not in known)),
        annotators=tuple(
            person.name for person in people if person.role == "annotator" and person.name not in adjudicators
        ),
        adjudicators=tuple(adjudicators),
    )


def configured_team(config: AnnotationConfig) -> Team:
    """Who judges.

    Raises:
        DataError: the users file is bad.
        UsageError: a name cannot be an account's, or there are fewer annotators than a record is assigned to.
    """
    team = SIMULATED_TEAM
    if config.annotators == "human":
        users = Path(config.users) if config.users else None
        team = team_of(users, config.human_annotators, config.adjudicators)
    if config.assignment == "balanced":
        team.check_enough(config.annotators_per_record)
    return team


def set_up_people(client: Client, team: Team, is_assigned: bool) -> dict[str, str]:
    """Make the accounts that do not exist yet, and return the new passwords by name.

    An account that exists keeps its password. Everybody becomes a member of the workspaces that their records stand
    in, which are other ones where records are assigned; an admin of those that anybody's stand in.

    Raises:
        AccordError: the server refuses.
    """
    passwords = {}
    for person in team.people:
        user = client.user(person.name)
        if user is None:
            passwords[person.name] = new_password()
            user = client.add_user(person.name, person.role, passwords[person.name])
        workspaces = set(person.workspaces)
        answer = team.annotators if person.role == "admin" else {person.name} & {*team.annotators}
        workspaces |= {workspace_of(name) if is_assigned else WORKSPACE for name in answer}
        judge = team.adjudicators if person.role == "admin" else {person.name} & {*team.adjudicators}
        workspaces |= {workspace_of(name) for name in judge}
        if user["role"] != "owner":  # an owner is everywhere
            for workspace in sorted(workspaces):
                client.join(user, workspace)
    return passwords


def reset_password(client: Client, name: str) -> str:
    """Give a user a new password, and return it; answers stay.

    Raises:
        UsageError: there is no such user.
    """
    user = client.user(name)
    if user is None:
        known = ", ".join(sorted(each["username"] for each in client.users()))
        raise UsageError(f"{client.url} has no user '{name}'; it has {known}")
    password = new_password()
    client.request("PATCH", f"users/{user['id']}", json={"password": password})
    return password


def _persons(names: Sequence[str]) -> tuple[Person, ...]:
    try:
        return tuple(Person(name=name) for name in names)
    except ValidationError as error:
        raise UsageError(f"feedback.human_annotators or adjudicators: {describe(error)}") from None


def _read(path: Path) -> tuple[Person, ...]:
    try:
        return UsersFile.model_validate(load_yaml(read_text(path))).users
    except ValidationError as error:
        raise DataError(f"{path}: {describe(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as YAML ({error})") from None
