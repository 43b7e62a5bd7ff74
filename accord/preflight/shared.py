"""What is wrong with a configuration, by its keys; and what the looks at its stages share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accord.bundled import data_path
from accord.config import Config
from accord.errors import AccordError, DataError, TamperedError, UsageError
from accord.records import Message, read_jsonl
from accord.round_config import RoundConfig
from accord.runs import Runs
from reward.judge_models import ServedModel
from reward.scorers import Scorer

Prompts = dict[str, list[Message]]


class Faults:
    """What is wrong, by the key of the configuration that says so."""

    def __init__(self) -> None:
        self.found: list[tuple[str, AccordError]] = []
        self.unreadable: set[str] = set()
        """The keys of files that cannot be read."""

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Keeps an error instead of raising it."""
        try:
            yield
        except AccordError as error:
            if key not in self.unreadable:
                self.found.append((key, error))

    def keep_unreadable(self, sections: Sequence[str], key: str, error: AccordError) -> None:
        """Keeps what is wrong with a file that a stage reads; nothing more is said of it then."""
        reads_preferences = {"feedback", "reward", "rl"} & set(sections)
        if key.partition(".")[0] in (*sections, *(("preferences",) if reads_preferences else ())):
            self.found.append((key, error))
            self.unreadable.add(key)

    def report(self) -> None:
        """Raise all that was found as one error."""
        if not self.found:
            return
        places = list(RoundConfig.model_fields)
        self.found.sort(key=lambda each: places.index(each[0].split(".")[0]))
        errors = [error for _, error in self.found]
        kind: type[AccordError] = AccordError
        if any(isinstance(error, UsageError) for error in errors):
            kind = UsageError
        else:
            for narrower in (DataError, TamperedError):
                if all(isinstance(error, narrower) for error in errors):
                    kind = narrower
        lines = list(dict.fromkeys(self._line(key, error) for key, error in self.found))
        if len(lines) == 1:
            raise kind(lines[0]) from errors[0]
        text = "".join(f"\n  {line}" for line in lines)
        raise kind(f"{len(lines)} things are wrong, and nothing was started:{text}") from errors[0]

    @staticmethod
    def _line(key: str, error: AccordError) -> str:
        text = " ".join(str(error).splitlines())
        return text if text.startswith(key) else f"{key}: {text}"


def read_rows(reference: str, row_type: Any) -> list[Any]:
    """Every row of a data file."""
    return read_jsonl(data_path(reference), row_type)


def is_finished(runs: Runs, stage: str, settings: Config) -> bool:
    """Whether a finished run of a stage has these settings."""
    wanted = settings.model_dump(mode="json")
    return any(
        run.is_done and run.record.stage == stage and run.record.config == wanted for run in runs.all(stage)
    )


def ask_scoring_server(scorer: Scorer) -> None:
    """Whether the server of a judge answers and takes the key."""
    if scorer.judge and isinstance(scorer.judge.model, ServedModel):
        scorer.judge.model.endpoint.check_answers()
