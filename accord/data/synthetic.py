"""What a model made is marked as synthetic, in the row itself and for ever."""

from collections.abc import Mapping
from typing import Any


def synthetic(
    columns: Mapping[str, Any], *, run: str, kind: str, model: str, seed: int, **more: Any
) -> dict[str, Any]:
    """A row with the column `synthetic`, which says where it comes from.

    Args:
        columns: the row's others. If it was made from a row that is synthetic, that one's mark is kept as `made_from`.
        run: the id of the run that made it.
        kind: what it is: `best_of_n`, or one of `data.generate.kind`.
        model: the reference of who wrote it.
        seed: of the sampling.
        more: what else there is to say.
    """
    before = {"made_from": columns["synthetic"]} if columns.get("synthetic") else {}
    mark = {"run": run, "kind": kind, "model": model, "seed": seed, **more, **before}
    return {**columns, "synthetic": mark}
