"""The rows of metrics.jsonl, sent to the trackers that accelerate knows as well: TensorBoard, Weights & Biases, ..."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accord.errors import UsageError


class Trackers:
    """Those that a run reports to; they may be none."""

    def __init__(self, names: Sequence[str], run_id: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start them.

        Args:
            names: as accelerate spells them.
            run_id: what they call the run.
            folder: for those that write files.
            settings: shown beside the figures.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # Some take single values only.
        flat = {
            key: value if isinstance(value, int | float | str) else json.dumps(value)
            for key, value in settings.items()
        }
        self._trackers: list[Any] = []
        for name in names:
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            if kind.requires_logging_directory:
                folder.mkdir(exist_ok=True)
                tracker = kind(run_id, folder)
            else:
                tracker = kind(run_id)
            self._trackers.append(tracker)
            tracker.start()
            tracker.store_init_configuration(flat)

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics; its `step` says where it belongs."""
        for tracker in self._trackers:
            tracker.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def finish(self) -> None:
        """Let them write what they still hold."""
        for tracker in self._trackers:
            tracker.finish()


@contextmanager
def tracking(
    names: Sequence[str], run_id: str, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Trackers]:
    """`Trackers` that are finished whatever happens."""
    trackers = Trackers(names, run_id, folder, settings)
    try:
        yield trackers
    finally:
        trackers.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Look whether the trackers are there.

    Raises:
        UsageError: accelerate does not know one of them, or it is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = {str(name): name for name in LOGGER_TYPE_TO_CLASS}
    kinds = {kind.value for kind in LoggerType}
    installed = {kind.value for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UsageError(
                f"rl.report_to: accelerate knows no tracker '{name}'; name any of {', '.join(known)}"
            )
        if name in kinds - installed:  # others were registered by a program and are there
            raise UsageError(
                f"rl.report_to: {name} is not installed; install it, or leave it out of the list"
            )
