"""Whatever is done to a file on which a verdict rests, promotion is refused with its name: a search, not examples."""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from synthetic_round import make_round

from accord.errors import AccordError
from accord.runs import NOT_OUTPUTS, Run, Runs
from eval.promotion import check_verdict

MUTATIONS = 1_000
OUTSIDE = {*NOT_OUTPUTS} - {"record.json"}
"""What a run may hold that nothing rests on: its lock, and what only an unfinished run needs."""


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Runs]:
    return make_round(
        tmp_path_factory.mktemp("mutations"), 0.3, gate={"utility": {"margin": 0.05}}, suites=()
    )


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """The folder as it was, afterwards."""
    copy = folder.with_name(f"copy-of-{folder.name}")
    folder.rename(copy)
    shutil.copytree(copy, folder)
    try:
        yield
    finally:
        shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink(
            missing_ok=True
        )
        copy.rename(folder)


def mutate(chance: random.Random, run: Path, elsewhere: Path) -> str:
    """Do something to a file of a run's folder; returns the name that has to be told, of several the first added."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.relative_to(run).parts[0] not in OUTSIDE)
    path = chance.choice(files)
    name = path.relative_to(run).as_posix()
    beside = path.with_name(
        chance.choice(("chat_template.jinja", "added.json", ".hidden", "model.bin", "vocab.txt"))
    )
    content = path.read_bytes()
    match chance.choice(
        ("flip", "truncate", "append", "remove", "rename", "link", "add", "folder", "linked folder")
    ):
        case "flip" if content:
            place = chance.randrange(len(content))
            path.write_bytes(
                content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
            )
        case "truncate" if content:
            path.write_bytes(content[: chance.randrange(len(content))])
        case "append":
            path.write_bytes(content + chance.choice((b" ", b"\n", b"\0", content or b"x")))
        case "rename":
            path.rename(beside)
            if name != "record.json":
                return beside.relative_to(run).as_posix()
        case "link":
            target = elsewhere / "same"
            target.write_bytes(content)
            path.unlink()
            path.symlink_to(target)
        case "add":
            beside.write_bytes(b"{}")
            return beside.relative_to(run).as_posix()
        case "folder":
            (path.parent / "additional_chat_templates").mkdir()
            added = path.parent / "additional_chat_templates" / "default.jinja"
            added.write_text("{{ messages }}")
            return added.relative_to(run).as_posix()
        case "linked folder":
            added = path.parent / chance.choice(("additional_chat_templates", "0", "heads"))
            added.symlink_to(chance.choice((elsewhere, Path("/nonexistent"), Path())))
            return added.relative_to(run).as_posix()
        case _:
            path.unlink()
    return name


def only_the_end_differs(mutated: Run, evaluation: Run, name: str) -> bool:
    """Whether only the time at which the evaluation ended is another one: the verdict was signed before."""
    if mutated.id != evaluation.id or name != "record.json":
        return False
    before = evaluation.record.model_dump()
    after = Runs(mutated.path.parent).load(evaluation.id).record.model_dump()
    return {key for key in before if before[key] != after[key]} <= {"ended_at"}


def test_every_mutation_is_refused_by_name(passed: tuple[Run, Runs], tmp_path: Path) -> None:
    run, runs = passed
    lineage = runs.lineage(run)
    assert {each.record.stage for each in lineage} >= {"sft", "feedback", "reward", "dpo", "eval"}
    unnoticed = []
    for seed in range(MUTATIONS):
        chance = random.Random(seed)
        mutated = chance.choice(lineage)
        with kept(mutated.path):
            name = mutate(chance, mutated.path, tmp_path)
            try:
                check_verdict(Runs(runs.root).load(run.id), Runs(runs.root))
                if not only_the_end_differs(mutated, run, name):
                    unnoticed.append((seed, mutated.id, name))
            except AccordError as error:
                told = str(error)
                if Path(name).name not in told and not (name == "record.json" and mutated.id in told):
                    unnoticed.append((seed, mutated.id, name, told))
    assert unnoticed == [], unnoticed[:5]
    assert check_verdict(run, Runs(runs.root)).outcome == "PASS"


@pytest.mark.parametrize("part", ["checkpoints", "trackers"])
def test_what_a_verdict_does_not_rest_on(passed: tuple[Run, Runs], part: str) -> None:
    """Folders that only an unfinished run needs are no outputs."""
    run, runs = passed
    with kept(run.path):
        (run.path / part).mkdir(exist_ok=True)
        (run.path / part / "state.pt").write_bytes(os.urandom(8))
        assert check_verdict(run, Runs(runs.root)).outcome == "PASS"


def test_a_copied_run_is_no_run(passed: tuple[Run, Runs]) -> None:
    run, runs = passed
    copy = runs.root / "eval-000000000001"
    shutil.copytree(run.path, copy)
    try:
        with pytest.raises(AccordError, match=f"is the record of run {run.id}"):
            runs.load(copy.name)
    finally:
        shutil.rmtree(copy)


def test_what_an_evaluations_record_says_besides(passed: tuple[Run, Runs]) -> None:
    """A changed byte of its record.json is noticed, but for when the evaluation ended: it was signed before."""
    run, runs = passed
    path = run.path / "record.json"
    content = path.read_bytes()
    ended = content.index(b'"ended_at": "') + len(b'"ended_at": "')
    unnoticed = []
    for place in range(0, len(content), 11):
        with kept(run.path):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                check_verdict(Runs(runs.root).load(run.id), Runs(runs.root))
                unnoticed.append(place)
            except AccordError:
                continue
    assert all(ended <= place < ended + len("2026-01-01T00:00:00+00:00") for place in unnoticed), unnoticed
