"""A run and all it descends from, as pages draw it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accord.page.words import duration, label, stage_title
from accord.runs import Run, Runs


@dataclass(frozen=True)
class Input:
    """Something from outside that a run read: a file, or a model that no run here made."""

    role: str
    name: str
    digest: str


@dataclass(frozen=True)
class Node:
    """One run in the picture; lengths are pixels of the SVG."""

    id: str
    stage: str
    tag: str
    link: str | None
    top: int
    height: int
    parents: dict[str, str]
    inputs: list[Input]
    dropped: dict[str, int]
    started_at: str
    took: str


@dataclass(frozen=True)
class Lineage:
    """A run and all it descends from, parents first.

    `steps` join neighbours in the picture; a trunk (node, later nodes, lane) joins one with others further down.
    """

    nodes: list[Node]
    steps: list[tuple[int, int]]
    trunks: list[tuple[int, list[int], int]]
    height: int


def lineage(run: Run, runs: Runs, tags: Mapping[str, str] | None = None) -> Lineage:
    """The descent of a run, laid out from top to bottom.

    Args:
        run: the run whose page it is.
        runs: where its ancestors are.
        tags: what some of them are to this run, by id, such as "candidate".
    """
    ancestors = in_order(run, runs)
    nodes: list[Node] = []
    top = 8
    for each in ancestors:
        record = each.record
        inputs = [
            Input(role, _source_name(record.config, role, digest), digest.split("@")[-1].split(":")[-1])
            for role, digest in record.inputs.items()
        ]
        height = max(56, 30 * len(inputs))
        is_self = each.id == run.id
        nodes.append(
            Node(
                id=each.id, stage=stage_title(record),
                tag="this page" if is_self else (tags or {}).get(each.id, ""),
                link=f"../{each.id}/report.html" if not is_self and "report.html" in record.outputs else None,
                top=top, height=height, parents=record.parents, inputs=inputs,
                dropped=record.dropped, started_at=record.started_at,
                took="" if is_self else duration(record.started_at, record.ended_at),
            )
        )  # fmt: skip
        top += height + 26
    place = {node.id: i for i, node in enumerate(nodes)}
    edges = sorted({(place[parent], i) for i, node in enumerate(nodes) for parent in node.parents.values()})
    steps = [(a, b) for a, b in edges if b == a + 1]
    far = {a: [b for first, b in edges if first == a and b > a + 1] for a, _ in edges}
    by_length = sorted((a for a in far if far[a]), key=lambda a: far[a][-1] - a)
    return Lineage(nodes, steps, [(a, far[a], lane) for lane, a in enumerate(by_length)], top - 18)


def in_order(run: Run, runs: Runs) -> list[Run]:
    """A run and its ancestors in the order in which they were made, parents first in any case."""
    ancestors = runs.lineage(run)
    by_time = sorted(ancestors, key=lambda each: each.record.started_at)
    place = {each.id: i for i, each in enumerate(by_time)}
    if all(place[p] < place[each.id] for each in by_time for p in each.record.parents.values()):
        return by_time
    return ancestors


def _source_name(config: Mapping[str, Any], role: str, digest: str) -> str:
    """What the configuration calls an input: `prompts: path`, or `demonstrations_0: [{path: ...}]`."""
    value = config.get(role)
    stem, _, index = role.rpartition("_")
    if value is None and index.isdigit() and isinstance(config.get(stem), list):
        value = config[stem][int(index)]
        value = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(value, str):
        return value
    return digest.split("@")[0] if "@" in digest else label(role)
