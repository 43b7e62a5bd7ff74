"""Accounts: from a file, once, with passwords that are shown and not kept."""

from pathlib import Path

import pytest

from accord.errors import DataError, UsageError
from feedback.argilla.client import Client, log_in
from feedback.argilla.people import SIMULATED_TEAM, configured_team, reset_password, set_up_people, team_of
from feedback.argilla.server.process import Server
from feedback.config import FeedbackConfig

TEAM = """\
users:
  - name: ute
  - name: vic
    workspaces: [pilot]
  - {name: wim, role: admin}
"""


@pytest.fixture
def team(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path


def test_annotators_are_those_of_the_file_without_admins_and_adjudicators(team: Path) -> None:
    assert team_of(team, (), ()).annotators == ("ute", "vic")
    settled = team_of(team, (), ["vic", "xia"])
    assert settled.annotators == ("ute",) and settled.adjudicators == ("vic", "xia")
    assert [person.name for person in settled.people] == ["ute", "vic", "wim", "xia"]
    assert team_of(None, ("a", "b"), ()).annotators == ("a", "b")
    assert SIMULATED_TEAM.annotators[0] == "simulated_careful" and not SIMULATED_TEAM.people


def test_a_configuration_says_who_annotates_and_enough_of_them(team: Path) -> None:
    assert configured_team(FeedbackConfig(prompts="p")) == SIMULATED_TEAM
    people = FeedbackConfig(prompts="p", annotators="human", users=str(team), assignment="balanced")
    with pytest.raises(UsageError, match="annotators_per_record is 4, but there are only 2 annotators"):
        configured_team(people)
    assert configured_team(people.model_copy(update={"annotators_per_record": 2})) == team_of(team, (), ())
    assert configured_team(people.model_copy(update={"assignment": "pool"})) == team_of(team, (), ())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("users: []", "users: Tuple should have at least 1 item"),
        ("users: [{name: a}, {name: a}]", "users: the name 'a' stands twice"),
        ("users: [{name: 'a b'}]", r"users\.0\.name: String should match pattern .* found \"a b\""),
        ("users: [{name: a, role: king}]", r"users\.0\.role: Input should be 'annotator' or 'admin'"),
        ("users: [{nmae: a}]", r"users\.0\.(name|nmae)"),
        ("users: [", "cannot be read as YAML"),
    ],
)
def test_a_bad_file_is_one_sentence_with_file_and_field(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=f"bad.yaml: .*{problem}"):
        team_of(path, (), ())
    with pytest.raises(DataError, match="no such file"):
        team_of(tmp_path / "nowhere.yaml", (), ())


@pytest.mark.slow
def test_accounts_are_made_once_with_roles_and_workspaces(server: Server, client: Client, team: Path) -> None:
    people = team_of(team, (), ())
    first = set_up_people(client, people, is_assigned=False)
    assert set(first) == {"ute", "vic", "wim"}
    assert set_up_people(client, people, is_assigned=False) == {}
    workspaces = {}
    for name, password in first.items():
        http = log_in(server.url, name, password)
        me = http.get("me").json()
        assert me["role"] == ("admin" if name == "wim" else "annotator")
        workspaces[name] = {each["name"] for each in http.get("me/workspaces").json()["items"]}
    assert workspaces == {"ute": {"accord"}, "vic": {"accord", "pilot"}, "wim": {"accord"}}

    assert set_up_people(client, team_of(team, (), ["vic"]), is_assigned=True) == {}
    joined = {
        each["name"] for each in log_in(server.url, "vic", first["vic"]).get("me/workspaces").json()["items"]
    }
    assert joined == {"accord", "pilot", "accord-vic"}
    admin = log_in(server.url, "wim", first["wim"]).get("me/workspaces").json()["items"]
    assert {each["name"] for each in admin} == {"accord", "accord-ute", "accord-vic"}

    new = reset_password(client, "ute")
    assert log_in(server.url, "ute", new).get("me").json()["username"] == "ute"
    with pytest.raises(UsageError, match="no user 'zoe'; it has"):
        reset_password(client, "zoe")
    kept = b"".join(path.read_bytes() for path in server.home.iterdir() if path.is_file())
    assert not any(password.encode() in kept for password in [*first.values(), new])
