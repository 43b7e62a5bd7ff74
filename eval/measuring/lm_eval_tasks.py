"""A task of lm-evaluation-harness run on one of our models: `pip install lm-eval[hf]==0.4.13`, no dependency of ours.

Of a user's own tasks only: the harness lists the thousands of its own for half a minute, and most of them download
their data. Weights are float32; neither its cache of results (which is not named by the model, so that a second model
gets the first one's) nor its cache of logits (which mixes up places, tests/eval/test_lm_eval.py) is used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import UsageError
from accord.models.files import has_virtual_tokens
from accord.models.loading import load_policy
from accord.models.references import Model
from accord.user_code import announce
from eval.measuring.lm_eval_samples import LoggedSample, samples_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 8
SEED = 0
VIRTUAL_TOKENS = (
    "lm-evaluation-harness pads prompts on the left, between virtual tokens and prompt; leave eval.lm_eval out for a "
    "model that was tuned by prefix or prompt"
)


def run_task(
    model: Model, tokenizer: "PreTrainedTokenizerBase", task: str, folder: Path, limit: int | None = None
) -> Mapping[int, LoggedSample]:
    """The values of every document of one task under one model, as `read_samples` gives them.

    Args:
        model: to evaluate.
        tokenizer: the model's.
        task: its name, as its YAML file in `folder` has it.
        folder: of task files.
        limit: of documents, the first ones; None for all.

    Raises:
        UsageError: lm-eval is not installed, or has no such task in the folder, or the model has virtual tokens.
        DataError: the task has no metric that is a number for each document.
    """
    if has_virtual_tokens(model.folder):
        raise UsageError(VIRTUAL_TOKENS)
    tasks = find_task(task, folder)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    results = simple_evaluate(
        model=HFLM(
            pretrained=load_policy(model).eval(), tokenizer=tokenizer, batch_size=BATCH_SIZE,
            logits_cache=False,
        ),
        tasks=[task], task_manager=tasks, limit=limit, bootstrap_iters=0, log_samples=True, random_seed=SEED,
        numpy_random_seed=SEED, torch_random_seed=SEED, fewshot_random_seed=SEED,
    )  # fmt: skip
    if results is None or task not in results["samples"]:
        raise UsageError(f"'{task}' is a group of lm-eval tasks; name one of them")
    return samples_of(results["samples"][task], f"lm-eval task {task}")


def find_task(task: str, folder: Path) -> Any:
    """lm-eval's `TaskManager` for the tasks of a folder.

    Raises:
        UsageError: lm-eval is not installed, or has no such task in the folder.
    """
    try:
        from lm_eval.models.huggingface import HFLM  # noqa: F401 - its own dependencies are the ones that lack
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"lm-eval's tasks need lm-eval, which is not all there ({error}); run: pip install 'lm-eval[hf]==0.4.13'"
        ) from None
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; put the task's YAML file into one and name that")
    announce("folder of lm-eval tasks", str(folder))  # whose YAML may name functions
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    if task not in tasks.all_tasks:
        found = ", ".join(sorted(tasks.all_tasks)) or "none"
        raise UsageError(f"{folder} has no lm-eval task '{task}'; the tasks found there: {found}")
    return tasks
