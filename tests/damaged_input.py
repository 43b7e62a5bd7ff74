"""Damaged folders, settings out of range and malformed files, each put before accord's own commands: `make damage`.

    .venv/bin/python tests/damaged_input.py [WORD]...      # only kinds that hold a word; --all prints every case

Each case must be refused with one sentence, exit code 1 or 2, that names the file. A traceback, a command that does not
end, or one that takes what is damaged for good is a failure, and then this exits with 1. What is unusual but right
(CRLF, UTF-16, ...) is put before them, too, and must be read.
"""

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from click.testing import CliRunner
from damaged_models import DAMAGES
from damaged_places import PAIRS, PLACES, Place, lines, prepare
from damaged_settings import BEFORE_THE_START, FILES, RANGES

SECONDS = 60
"""For a command; longer, and it does not end."""
LONGEST_MESSAGE = 900


@dataclass(frozen=True)
class Outcome:
    """How a command took a case."""

    kind: str
    case: str
    exit_code: int | str
    """A text where there is none: of what went wrong instead."""
    message: str
    fault: str
    """What should have been otherwise; empty where all is well."""


def run(words: list[str]) -> tuple[int | str, str]:
    """A command's exit code and what it said on standard error, or what went wrong and where."""
    from accord.cli.main import main
    from accord.time_limit import time_limit

    begin = time.monotonic()
    with time_limit(SECONDS):
        done = CliRunner().invoke(main, ["--runs", "runs", *words])
    if time.monotonic() - begin > SECONDS:
        return "no end", done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return "traceback", "".join(traceback.format_exception(done.exception, limit=-3))
    return done.exit_code, (done.stderr or done.output).strip()


def outcome(kind: str, case: str, words: list[str], names: str, right: bool = False) -> Outcome:
    """Run a command on a case that it must refuse with `names` in its message, or, with `right`, take."""
    code, said = run(words)
    fault = ""
    if isinstance(code, str):
        fault = code
    elif right:
        fault = "refused what is right" if code else ""
    elif code not in (1, 2):
        fault = "taken for good"
    elif names not in said or len(said) > LONGEST_MESSAGE:
        fault = "does not say what is wrong"
    return Outcome(kind, case, code, said, fault)


def damaged_files(place: Place) -> Iterator[Outcome]:
    """All damages of one file; what was there before is there again afterwards."""
    path, words = Path(place.file), shlex.split(place.command.replace("FILE", place.file))
    before = path.read_bytes() if path.exists() else None
    good = place.good or before or b""
    cases: list[tuple[str, bytes | None, bool]] = (
        [("as it should be", good, True)] if place.takes_good else []
    )
    cases += [(name, damage(good), True) for name, damage in place.right.items()]
    cases += [(name, damage(good), False) for name, damage in place.damages.items()]
    try:
        for name, content, right in cases:
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
                path.chmod(0o600)
            yield outcome(place.kind, name, words, place.said or path.name, right)
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
            path.chmod(0o600)


def damaged_folders() -> Iterator[Outcome]:
    """All damages of a model's folder."""
    words = shlex.split("config check base.yaml 'sft={demonstrations: good.jsonl}' model=damaged")
    for name, damage in DAMAGES.items():
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree("model", "damaged")
        damage(Path("damaged").absolute())
        yield outcome("a model's folder", name, words, "damaged")


def damaged_settings() -> Iterator[Outcome]:
    """All settings that no stage could use."""
    pairs = [row | {"topic": "numbers", "score": i} for i, row in enumerate(PAIRS)]
    Path("pairs.jsonl").write_bytes(lines(pairs))
    Path("without_weight.jsonl").write_bytes(lines([row | {"weight": 0} for row in pairs]))
    shutil.copy("good.jsonl", "rows.jsonl")
    Path("plain.yaml").write_text(
        "model: model\nsampling: {engine: transformers}\nsft: {demonstrations: rows.jsonl}\npreferences: pairs.jsonl\n"
        "reward: {lora: {rank: 2}}\nrl: {algorithm: dpo}\n"
        "eval: {prompts: held.jsonl, suites: [], gate: {eos_rate: {margin: 0.1}}}\n"
    )
    yield outcome("settings", "as they should be", ["config", "check", "plain.yaml"], "", right=True)
    for override, told in [*RANGES, *BEFORE_THE_START]:
        yield outcome("settings", override[:60], ["config", "check", "plain.yaml", override], told)
    for number, (text, told) in enumerate(FILES, start=1):
        Path("file.yaml").write_text(text)
        yield outcome("settings", f"file {number} without an end", ["config", "check", "file.yaml"], told)


@contextlib.contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Within it, commands find in `folder` what they read, and their own key."""
    from accord.chat import rendering

    before = {"ACCORD_KEY": os.environ.get("ACCORD_KEY"), "PATH": os.environ["PATH"]}
    seconds, rendering.SECONDS_TO_RENDER = rendering.SECONDS_TO_RENDER, 2.0
    prepare(folder)
    os.environ |= {"ACCORD_KEY": str(folder / "keys" / "key")}
    try:
        with contextlib.chdir(folder):
            run(["keys", "show"])  # which makes one
            yield
    finally:
        rendering.SECONDS_TO_RENDER = seconds
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def table(outcomes: list[Outcome], whole: bool) -> str:
    """A line a case, or a line a kind, and what failed."""
    rows = []
    for kind in dict.fromkeys(each.kind for each in outcomes):
        here = [each for each in outcomes if each.kind == kind]
        faults = [each for each in here if each.fault]
        codes = ", ".join(
            f"{sum(each.exit_code == code for each in here)} x {code}"
            for code in sorted({each.exit_code for each in here}, key=str)
        )
        rows.append(f"{kind:<34} {len(here):>4} cases   exit codes {codes:<28} {len(faults)} failed")
        for each in here if whole else faults:
            first = each.message.partition("\n")[0] if not isinstance(each.exit_code, str) else each.message
            rows.append(f"    {each.exit_code!s:>9}  {each.case:<44} {each.fault or first[:160]}")
            if each.fault:
                rows.append(f"               {first[:1500]}")
    return "\n".join(rows)


def main(words: list[str]) -> int:
    """Everything whose kind holds one of these words, or all."""
    whole, words = "--all" in words, [word for word in words if word != "--all"]
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, working_folder(Path(folder)):
        groups: list[tuple[str, Any]] = [
            ("a model's folder", damaged_folders),
            ("settings", damaged_settings),
        ]
        groups += [(place.kind, lambda place=place: damaged_files(place)) for place in PLACES]
        for kind, cases in groups:
            if not words or any(word in kind for word in words):
                here = list(cases())
                print(table(here, whole), flush=True)
                found += here
    faults = [each.fault for each in found if each.fault]
    right = sum(each.exit_code == 0 for each in found)
    print(
        f"{len(found)} cases, of which {right} are right and were read: {faults.count('traceback')} tracebacks, "
        f"{faults.count('taken for good')} silent acceptances, {faults.count('no end')} without an end, "
        f"{len(faults)} failures in all"
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
