"""What a training stage changes in the process around it, and puts back."""

import logging
import warnings

import datasets
import pytest
import transformers

from accord.training import quiet_libraries


def warn_as(module: str, category: type[Warning]) -> None:
    code = compile(f"import warnings; warnings.warn('said by {module}', {category.__name__})", module, "exec")
    exec(code, {"__name__": module})


@pytest.mark.parametrize("category", [UserWarning, FutureWarning])
def test_users_warnings_are_heard_and_libraries_notices_are_not(category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_libraries():
            for module in ("my_rewards", "trl.trainer.dpo_trainer", "torch", "torch_of_mine", "rl.dpo"):
                warn_as(module, category)
    assert [str(each.message) for each in heard] == ["said by my_rewards", "said by torch_of_mine"]


def test_log_levels_and_bars_are_as_before() -> None:
    def state() -> tuple[object, ...]:
        names = ("accelerate", "bitsandbytes")
        return (
            transformers.utils.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled(),
            *(logging.getLogger(name).level for name in names),
        )  # fmt: skip

    logging.getLogger("accelerate").setLevel(logging.DEBUG)
    datasets.disable_progress_bars()
    try:
        before = state()
        with pytest.raises(RuntimeError), quiet_libraries():
            assert state() != before
            raise RuntimeError
        assert state() == before
    finally:
        logging.getLogger("accelerate").setLevel(logging.NOTSET)
        datasets.enable_progress_bars()
