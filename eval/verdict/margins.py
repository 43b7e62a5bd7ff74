"""Margins that nothing could decide are refused before anything is measured."""

from collections.abc import Iterable, Mapping

from accord.errors import UsageError
from eval.config import EvalConfig, Rules
from eval.suites.metrics import METRICS
from eval.verdict.floors import check_floors

SMALLEST_SLICE = 10
"""Clusters that a group needs for an interval, and for a margin; with fewer it is too small to say."""
OF_REWARDS = {"reward", "win_rate", "win_rate_length_controlled"}


def check_sources(config: EvalConfig, has_reward_model: bool) -> None:
    """Refuse margins for metrics whose source is not named.

    Raises:
        UsageError: the gate needs a reward model, a judge or a review, and has none.
    """
    lacking = []
    if not has_reward_model:
        what = "a reward model; add a reward section to the round, or name one with --reward-model"
        lacking.append((sorted(config.gate.keys() & OF_REWARDS), what))
    if not config.judge:
        judged = sorted(name for name in config.gate if name.startswith("judge_"))
        lacking.append((judged, "a judge; name one in eval.judge"))
    if not config.review:
        lacking.append((sorted(config.gate.keys() & {"adjudicated"}), "a review; name one in eval.review"))
    for asked, what in lacking:
        if asked:
            kind = config.gate[asked[0]].kind
            raise UsageError(f"the gate has a {kind} for '{asked[0]}', so it needs {what}")


def check_slices(rules: Rules, name: str, clusters: Iterable[str], groups: Iterable[str | None]) -> None:
    """Refuse margins for groups of a metric's items that are not there or are too small to decide.

    Args:
        rules: with the margins.
        name: of the metric.
        clusters: each item's.
        groups: each item's.

    Raises:
        UsageError: with the groups that there are, or how many clusters one has.
    """
    if name not in rules.gate or not rules.gate[name].slices:
        return
    members: dict[str, set[str]] = {}
    for cluster, group in zip(clusters, groups, strict=True):
        if group is not None:
            members.setdefault(group, set()).add(cluster)
    for group in rules.gate[name].slices:
        if group not in members:
            raise UsageError(
                f"the gate has a margin for '{name}' in '{group}', and there is no such group; "
                f"there are: {', '.join(members) or 'none'}"
            )
        if len(members[group]) < SMALLEST_SLICE:
            raise UsageError(
                f"the gate has a margin for '{name}' in '{group}', which has {len(members[group])} "
                f"{rules.metrics[name].cluster}; a group needs at least {SMALLEST_SLICE} to decide anything"
            )


def check_prompt_slices(rules: Rules, prompts: Iterable[str], groups: Mapping[str, str]) -> None:
    """`check_slices` and `check_floors` for every metric of answers, before there are any."""
    names = list(prompts)
    for name in rules.gate.keys() & METRICS.keys():
        check_slices(rules, name, names, [groups.get(each) for each in names])
        check_floors(rules, name, names)
