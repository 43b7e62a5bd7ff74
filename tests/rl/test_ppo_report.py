from pathlib import Path

from accord.config import Config
from accord.page.plots import training_curves
from accord.runs import Run, Runs


def run_with(rows: str, runs: Runs) -> Run:
    with runs.begin("ppo", Config(), {}) as run:
        (run.path / "metrics.jsonl").write_text(rows)
        run.finish({})
    return run


def test_the_page_of_a_ppo_run_draws_score_against_kl(tmp_path: Path) -> None:
    rows = (
        '{"step": 1, "score": 0.5, "kl_k1_nats": 0.0, "response_tokens": 9}\n'
        '{"step": 2, "score": 1.5, "kl_k1_nats": 2.5, "response_tokens": 8}\n'
        '{"step": 2, "eval_score": 1.25, "eval_kl_k1_nats": 3.0}\n'
    )
    curves = {curve.title: curve for curve in training_curves(run_with(rows, Runs(tmp_path / "a")))}
    assert list(curves) == [
        "Score of an answer", "Distance from the reference (KL of an answer, nats)", "Length of an answer (tokens)",
        "Score against distance from the reference",
    ]  # fmt: skip
    frontier = curves["Score against distance from the reference"]
    assert frontier.description == "training: from a score of 0.500 at 0.000 nats to 1.50 at 2.50 nats"
    assert "KL of an answer (nats)" in frontier.svg
    assert curves["Score of an answer"].description.endswith("held out: 1.25 at update 2, 1.25 at update 2")


def test_other_stages_have_no_such_picture(tmp_path: Path) -> None:
    rows = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n'
    assert [curve.title for curve in training_curves(run_with(rows, Runs(tmp_path / "b")))] == ["Loss"]
