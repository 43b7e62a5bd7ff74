"""How sharply rankings determine the annotators' parameters: the curvature of their log evidence.

    information = observed_information(batch, theta)        # [4 annotators + 1, 4 annotators + 1]

By Louis (1982, "Finding the observed information matrix when using the EM algorithm") the second derivatives of a log
evidence are the mean of the log likelihood's, plus the covariance of its first ones, both under the posterior of the
worths. Parameters of two annotators meet in the comparisons that both have ranked, and nowhere else, so the cost grows
with the rankings alone; differences of gradients would take all rankings once for each parameter.
"""

import numpy as np
from jaxtyping import Float

from feedback.belief.likelihood import ComparisonBatch, PointChoices


def observed_information(
    batch: ComparisonBatch, theta: Float[np.ndarray, " parameters"]
) -> Float[np.ndarray, "parameters parameters"]:
    """Minus the second derivatives of the batch's log evidence, at the points that it has.

    Args:
        batch: with its points laid.
        theta: every annotator's beta, position, length and tie, and gamma.
    """
    size = (
        4 * (batch.count + 1) + 1
    )  # the truth, who has no parameters, stands after the annotators; gamma is last
    found = np.zeros((size, size))
    for chunk in batch.likelihoods(theta):
        if not chunk.choices:
            continue
        first = min(each.rows[0] for each in chunk.choices)
        count = sum(len(each.rows) for each in chunk.choices)
        scores = np.empty((count, 5, chunk.weights.shape[1]))
        for choices in chunk.choices:
            rows = choices.rows
            at_points = chunk.weights[choices.block]
            scores[rows - first], curvature = _of_choices(batch, theta, choices, at_points)
            places = np.column_stack([4 * batch.who[rows, None] + np.arange(4), np.full(len(rows), size - 1)])
            flat = places[:, :, None] * size + places[:, None, :]
            np.add.at(found.reshape(-1), flat.reshape(-1), -curvature.reshape(-1))
        of_rows = slice(first, first + count)
        block, who = batch.block[of_rows] - chunk.blocks.start, batch.who[of_rows]
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        for own, each, people in zip(
            np.split(scores, starts[1:]), block[starts], np.split(who, starts[1:]), strict=True
        ):
            names, of_name = np.unique(people, return_inverse=True)
            summed = np.zeros((len(names), 4, own.shape[2]))
            np.add.at(summed, of_name, own[:, :4])
            score = np.concatenate([summed.reshape(-1, own.shape[2]), own[:, 4].sum(axis=0, keepdims=True)])
            weighted = score * chunk.weights[each]
            mean = weighted.sum(axis=1)
            at = np.append((4 * names[:, None] + np.arange(4)).ravel(), size - 1)
            found[np.ix_(at, at)] -= weighted @ score.T - np.outer(mean, mean)
    kept = np.append(np.arange(4 * batch.count), size - 1)
    return found[np.ix_(kept, kept)]


def _of_choices(
    batch: ComparisonBatch,
    theta: np.ndarray,
    choices: PointChoices,
    weights: Float[np.ndarray, "rows P"],
) -> tuple[Float[np.ndarray, "rows 5 P"], Float[np.ndarray, "rows 5 5"]]:
    """The first derivatives of some choices' log likelihoods by (beta, position, length, tie, gamma) at every point,
    and the mean over the points of the second ones.

    The log weight of an alternative is beta (worth + gamma length) + position early + length length + tie extra, so
    the first ones are what was chosen minus the mean of the alternatives; the second ones are minus the covariance of
    the alternatives, and for beta and gamma together, whose product it has, the first one by length.
    """
    rows, z, gamma = choices.rows, choices.z, theta[-1]
    choice = choices.weights / choices.total[:, None]  # [rows, T, P]
    size = choice.shape[1]
    beta = batch.fixed_parts(theta, gamma)[0][rows]
    early, length, extra = (each[rows, :size] for each in (batch.early, batch.row_length, batch.extra))
    still = np.stack([early, length, extra, beta[:, None] * length], axis=1)  # [rows, 4, T]
    chosen = np.stack(
        [
            batch.early_chosen[rows], batch.length_chosen[rows], batch.chosen_extra[rows],
            beta * batch.length_chosen[rows],
        ],
        axis=1,
    )  # fmt: skip
    worth = batch.alternatives[rows, :size] @ z[:, :-1] + gamma * length[:, :, None]  # [rows, T, P]
    of_worth = choice * worth
    mean = np.concatenate([of_worth.sum(axis=1, keepdims=True), still @ choice], axis=1)  # [rows, 5, P]
    worth_chosen = (batch.chosen[rows, None] @ z[:, :-1]) + (gamma * batch.length_chosen[rows])[:, None, None]
    points = np.broadcast_to(chosen[:, :, None], (*chosen.shape, z.shape[2]))
    scores = np.concatenate([worth_chosen, points], axis=1) - mean

    second = np.empty((len(rows), 5, 5))
    second[:, 1:, 1:] = (still * (choice @ weights[:, :, None])[:, None, :, 0]) @ still.transpose(0, 2, 1)
    second[:, 0, 1:] = second[:, 1:, 0] = (still @ (of_worth @ weights[:, :, None]))[:, :, 0]
    second[:, 0, 0] = ((of_worth * worth).sum(axis=1) * weights).sum(axis=1)
    curvature = (mean * weights[:, None]) @ mean.transpose(0, 2, 1) - second
    by_length = (scores[:, 2] * weights).sum(axis=1)
    curvature[:, 0, 4] += by_length
    curvature[:, 4, 0] += by_length
    return scores, curvature
