"""Pushing comparisons and pulling rankings through the real server: nothing twice, nothing lost, nothing turned."""

import itertools

import httpx
import pytest
from feedback_helpers import comparison

from accord.errors import AccordError
from accord.records import Comparison
from feedback.argilla.client import WORKSPACE, Client, connect, log_in, workspace_of
from feedback.argilla.collect import Changes, changes, pull, push, status
from feedback.argilla.server.process import Server
from feedback.argilla.tasks import as_read, display_order, displayable, fields_of, record_id, record_of

pytestmark = pytest.mark.slow

TEXTS = ["Alpha.", "Beta.", "Gamma."]


def answer(
    http: httpx.Client,
    client: Client,
    dataset_name: str,
    comparison_id: str,
    body: dict,
    workspace: str = WORKSPACE,
) -> dict:
    """Post an answer as an annotator's page does; the record is found by its external id."""
    dataset = client.existing_dataset(dataset_name, workspace)
    wanted = record_id(dataset_name, comparison_id)
    record = next(r for r in client.records(dataset["id"]) if r["external_id"] == wanted)
    response = http.post(f"records/{record['id']}/responses", json=body)
    assert response.status_code == 201, response.text
    return record


def ranking(**ranks: int) -> dict:
    return {"ranking": {"value": [{"value": name, "rank": rank} for name, rank in ranks.items()]}}


def annotator(server: Server, client: Client, name: str) -> httpx.Client:
    return log_in(server.url, name, client.set_up_annotator(name))


def test_push_adds_nothing_twice(client: Client) -> None:
    comparisons = [comparison(i, TEXTS) for i in range(230)]  # more than two requests
    assert push(client, "once", comparisons[:120], min_submitted=2) == 120
    assert push(client, "once", comparisons, min_submitted=2) == 110
    assert push(client, "once", comparisons, min_submitted=2) == 0
    dataset = client.existing_dataset("once")
    external_ids = [record["external_id"] for record in client.records(dataset["id"])]
    assert sorted(external_ids) == sorted(record_id("once", each.id) for each in comparisons)
    assert dataset["distribution"] == {"strategy": "overlap", "min_submitted": 2}
    assert dataset["allow_extra_metadata"] is False


def test_the_page_s_guidelines_say_what_to_do_and_then_what_is_good(client: Client) -> None:
    pair = comparison(1, TEXTS[:2])
    push(client, "own-words", [pair], 1, "pairwise", guidelines="Be kind.")
    push(client, "our-words", [pair], 1)
    own, ours = (client.existing_dataset(name)["guidelines"] for name in ("own-words", "our-words"))
    assert "by how much" in own and own.endswith("Be kind.") and "Helpful" not in own
    assert "rank **all** responses" in ours and "Helpful" in ours
    with pytest.raises(AccordError, match="between 2 responses; these comparisons have 3"):
        push(client, "three", [comparison(1, TEXTS)], 1, "pairwise")


def test_a_push_that_was_killed_while_making_the_dataset_is_begun_again(client: Client) -> None:
    new = {"name": "half-made", "workspace_id": client.workspace_id()}
    half = client.request("POST", "datasets", json=new)
    client.request("POST", f"datasets/{half['id']}/fields", json=fields_of(2)[0])
    with pytest.raises(AccordError, match="no dataset 'half-made'"):
        status(client, "half-made", [comparison(1, TEXTS)])
    assert push(client, "half-made", [comparison(1, TEXTS)], min_submitted=1) == 1


def test_what_one_dataset_cannot_hold_is_refused(client: Client) -> None:
    with pytest.raises(AccordError, match="no comparisons"):
        push(client, "bad", [], min_submitted=1)
    with pytest.raises(AccordError, match="two comparisons have the id 'c-1'"):
        push(client, "bad", [comparison(1, TEXTS), comparison(1, TEXTS)], min_submitted=1)
    with pytest.raises(AccordError, match=r"\[2, 3\] responses"):
        push(client, "bad", [comparison(1, TEXTS), comparison(2, TEXTS[:2])], min_submitted=1)
    with pytest.raises(AccordError, match="between 2 and 8"):
        push(client, "bad", [comparison(1, ["a"] * 9)], min_submitted=1)
    assert client.dataset("bad") is None
    push(client, "kept", [comparison(1, TEXTS)], min_submitted=1)
    with pytest.raises(AccordError, match="asks for 1 annotators a record, not 2"):
        push(client, "kept", [comparison(1, TEXTS)], min_submitted=2)
    with pytest.raises(AccordError, match="other texts for the comparison 'c-1'"):
        push(client, "kept", [comparison(1, ["Changed.", *TEXTS[1:]])], min_submitted=1)
    with pytest.raises(AccordError, match="shows other texts than the comparison"):
        pull(client, "kept", [comparison(1, ["Changed.", *TEXTS[1:]])])
    with pytest.raises(AccordError, match="has no record 'c-2'"):
        pull(client, "kept", [comparison(2, TEXTS)])


def test_ranks_come_back_in_the_original_order_with_ties_discards_and_drafts(
    server: Server, client: Client
) -> None:
    comparisons = [comparison(i, TEXTS) for i in range(6)]
    push(client, "exact", comparisons, min_submitted=2)
    anna, ben = annotator(server, client, "anna"), annotator(server, client, "ben")

    def by_text(each: Comparison, ranks: dict[str, int]) -> dict:
        """Rank the texts as they are displayed: in definition order, as the page posts them."""
        order = display_order("exact", each.id, 3)
        return ranking(**{f"response_{i + 1}": ranks[TEXTS[index]] for i, index in enumerate(order)})

    strict = by_text(comparisons[0], {"Alpha.": 3, "Beta.": 1, "Gamma.": 2})
    tied = by_text(comparisons[0], {"Alpha.": 1, "Beta.": 3, "Gamma.": 1})
    answer(anna, client, "exact", "c-0", {"status": "submitted", "values": strict})
    answer(ben, client, "exact", "c-0", {"status": "submitted", "values": tied})
    answer(anna, client, "exact", "c-1", {"status": "discarded", "values": {}})
    answer(ben, client, "exact", "c-1", {"status": "discarded"})  # stored as values: null
    answer(anna, client, "exact", "c-2", {"status": "draft", "values": ranking(response_2=1)})
    gap = by_text(comparisons[3], {"Alpha.": 1, "Beta.": 3, "Gamma.": 3})  # the page allows 1, 3, 3
    answer(anna, client, "exact", "c-3", {"status": "submitted", "values": gap})
    kept = by_text(comparisons[4], {"Alpha.": 2, "Beta.": 1, "Gamma.": 3})
    answer(anna, client, "exact", "c-4", {"status": "discarded", "values": kept})

    pulled = pull(client, "exact", comparisons)
    found = [[(each.annotator, each.status, each.ranks) for each in one.rankings] for one in pulled]
    assert found == [
        [("anna", "submitted", [3, 1, 2]), ("ben", "submitted", [1, 3, 1])],
        [("anna", "discarded", None), ("ben", "discarded", None)],
        [("anna", "draft", None)],
        [("anna", "submitted", [1, 3, 3])],
        [("anna", "discarded", [2, 1, 3])],
        [],
    ]
    assert [one.responses for one in pulled] == [one.responses for one in comparisons]
    first, second = pulled[0].rankings[0], pulled[1].rankings[0]
    assert first.seconds is None
    assert second.seconds is not None and 0 < second.seconds < 60
    assert first.submitted_at is not None and first.submitted_at.endswith("Z")
    assert pulled[2].rankings[0].submitted_at is None
    assert pull(client, "exact", comparisons) == pulled

    state = status(client, "exact", comparisons)
    assert (state.records, state.records_completed, state.records_waiting) == (6, 1, 4)
    assert state.answers == {
        "anna": {"discarded": 2, "draft": 1, "submitted": 2},
        "ben": {"discarded": 1, "submitted": 1},
    }


def test_a_pull_takes_edits_and_notices_what_was_deleted(server: Server, client: Client) -> None:
    comparisons = [comparison(i, TEXTS) for i in range(3)]
    push(client, "again", comparisons, min_submitted=2)
    anna, ida = annotator(server, client, "anna"), annotator(server, client, "ida")
    given = {"status": "submitted", "values": ranking(response_1=1, response_2=2, response_3=3)}
    for each in comparisons:
        answer(anna, client, "again", each.id, given)
    answer(ida, client, "again", "c-0", given)
    first = pull(client, "again", comparisons)
    assert changes(comparisons, first) == Changes(new=4)
    assert changes(first, pull(client, "again", first)) == Changes(unchanged=4)

    # anna edits her answer to c-1, clears the one to c-2, and ida's account goes, with all she said
    dataset = client.existing_dataset("again")
    by_id = {r["external_id"]: r for r in client.records(dataset["id"], with_responses=True)}
    edited, cleared = (by_id[record_id("again", id_)]["responses"][0]["id"] for id_ in ("c-1", "c-2"))
    new = {"status": "submitted", "values": ranking(response_1=2, response_2=1, response_3=2)}
    assert anna.put(f"responses/{edited}", json=new).status_code == 200
    assert anna.delete(f"responses/{cleared}").status_code == 200
    user = client.user("ida")
    assert user is not None
    client.request("DELETE", f"users/{user['id']}")
    second = pull(client, "again", first)
    assert changes(first, second) == Changes(edited=1, deleted=2, unchanged=1)
    order = display_order("again", "c-1", 3)
    ranks = second[1].rankings[0].ranks
    assert ranks is not None and [ranks[index] for index in order] == [2, 1, 2]
    kept = [(one.annotator, one.status, one.ranks) for each in second for one in each.rankings]
    assert [each for each in kept if each[1] == "deleted"] == [
        ("ida", "deleted", first[0].rankings[1].ranks),
        ("anna", "deleted", first[2].rankings[0].ranks),
    ]
    # she answers again, and the record itself goes
    answer(anna, client, "again", "c-2", given)
    client.request("DELETE", f"records/{by_id[record_id('again', 'c-1')]['id']}")
    third = pull(client, "again", second)
    assert changes(second, third) == Changes(edited=1, deleted=1, unchanged=2)
    assert third[2].rankings[0].status == "submitted"


def test_assigned_records_go_to_their_annotators_and_nobody_else(server: Server, client: Client) -> None:
    comparisons = [
        comparison(i, TEXTS).model_copy(update={"assigned_to": names})
        for i, names in enumerate([["jo", "kim"], ["kim", "lee"], ["lee", "jo"]])
    ]
    people = {
        name: log_in(server.url, name, client.set_up_annotator(name, workspaces=[workspace_of(name)]))
        for name in ("jo", "kim", "lee")
    }
    assert push(client, "assigned", comparisons, min_submitted=2) == 6
    assert push(client, "assigned", comparisons, min_submitted=2) == 0
    assert status(client, "assigned", comparisons).records_waiting == 6
    given = {"status": "submitted", "values": ranking(response_1=1, response_2=2, response_3=3)}
    for each in comparisons:
        for name in each.assigned_to or []:
            answer(people[name], client, "assigned", each.id, given, workspace_of(name))
    for name, http in people.items():
        (seen,) = [d for d in http.get("me/datasets").json()["items"] if d["name"] == "assigned"]
        assert http.get(f"datasets/{seen['id']}/progress").json()["total"] == 2, name
    state = status(client, "assigned", comparisons)
    assert (state.records, state.records_completed, state.records_waiting) == (6, 6, 0)
    pulled = pull(client, "assigned", comparisons)
    assert [[one.annotator for one in each.rankings] for each in pulled] == [
        ["jo", "kim"], ["kim", "lee"], ["jo", "lee"],
    ]  # fmt: skip
    with pytest.raises(AccordError, match="either all comparisons of one dataset are assigned"):
        push(client, "mixed", [*comparisons, comparison(9, TEXTS)], min_submitted=1)


@pytest.mark.parametrize("responses", [2, 3, 8])
def test_every_displayed_text_maps_to_its_own_index(responses: int) -> None:
    texts = [f"Text {i}." for i in range(responses)]
    for number in range(50):
        each = comparison(number, texts)
        order = display_order("any", each.id, responses)
        assert sorted(order) == list(range(responses))
        fields = record_of(each, "any")["fields"]
        assert [fields[f"response_{i + 1}"] for i in range(responses)] == [texts[index] for index in order]


def test_every_order_of_display_is_equally_likely() -> None:
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for number in range(3000):
        counts[tuple(display_order("any", f"c-{number}", 3))] += 1
    # 500 expected of each; five standard deviations of a binomial count are 102
    assert all(398 < count < 602 for count in counts.values())
    assert display_order("one", "c-1", 8) != display_order("another", "c-1", 8)


def test_nothing_but_texts_reaches_the_server(client: Client) -> None:
    each = comparison(1, TEXTS)
    push(client, "blind", [each], min_submitted=1)
    record = next(client.records(client.existing_dataset("blind")["id"]))
    assert set(record["fields"]) == {"prompt", "response_1", "response_2", "response_3"}
    assert each.id not in str(record["external_id"])
    assert not record["metadata"]
    assert "policy0" not in str(record)


@pytest.mark.parametrize("text", ["a < b & c > d", "<b>x</b>", "&lt; &amp;amp;", 'it\'s "so"', "é\n\n漢", ""])
def test_what_is_sent_reads_as_what_was_written(text: str) -> None:
    assert as_read(displayable(text)) == text
    assert "<" not in displayable(text)


def test_a_password_is_reset_and_answers_stay(server: Server, client: Client) -> None:
    push(client, "reset", [comparison(1, TEXTS)], min_submitted=1)
    carl = annotator(server, client, "carl")
    values = ranking(response_1=1, response_2=2, response_3=3)
    answer(carl, client, "reset", "c-1", {"status": "submitted", "values": values})
    log_in(server.url, "carl", client.set_up_annotator("carl", "a password of his"))
    assert log_in(server.url, "carl", "a password of his").get("me").json()["role"] == "annotator"
    assert len(pull(client, "reset", [comparison(1, TEXTS)])[0].rankings) == 1
    with pytest.raises(AccordError, match="is no annotator but owner"):
        client.set_up_annotator("owner")


def test_a_server_that_is_not_there_or_not_argilla_is_one_sentence(server: Server, client: Client) -> None:
    carl = client.set_up_annotator("dora")
    key = log_in(server.url, "dora", carl).get("me").json()["api_key"]
    with pytest.raises(AccordError, match="is annotator 'dora's; use an owner's key"):
        connect(server.url, key)
    with pytest.raises(AccordError, match="does not answer like Argilla's API"):
        connect(server.url + "/sign-in", "any")
    with pytest.raises(AccordError, match=r"cannot be reached .* is the server running"):
        connect("http://127.0.0.1:9", "any")
