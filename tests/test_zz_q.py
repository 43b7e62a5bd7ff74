from training_helpers import run_stage
from accord.runs import Runs


def test_q(tiny_model, preferences, tmp_path, one_thread):
    P = {
        "epochs": 1.5,
        "learning_rate": 1e-2,
        "rows_per_update": 8,
        "rows_per_pass": 4,
        "max_sequence_tokens": 300,
        "checkpoint_every_updates": 2,
        "evaluate_every_updates": 4,
        "seed": 3,
        "lora": {"rank": 4, "alpha": 8, "quantize_base": True},
    }
    for i in range(3):
        r = run_stage("reward", P, tiny_model, preferences, Runs(tmp_path / str(i)))
        print([(x["step"], x.get("loss"), x.get("eval_loss")) for x in r.metric_rows()])
