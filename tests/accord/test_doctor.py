"""The doctor: it finds what is here, and whatever it finds wrong comes with something to do."""

import socket
from pathlib import Path

import pytest

from accord import bootstrap, doctor
from accord.doctor import Check, Probe


def test_a_whole_examination_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    named = {check.name: check for check in checks}
    for name in ("Python", "torch", "libraries"):
        assert named[name].ok and named[name].required
    assert {
        "vLLM",
        "QLoRA",
        "Argilla server",
        "bundled model",
        "Chromium (tests)",
        "disk",
        "memory",
    } <= named.keys()
    assert all(check.remedy for check in checks if not check.ok)
    assert doctor.exit_code(checks) == 0
    doctor.render(checks)
    printed = capsys.readouterr().out
    assert all(name.split()[0] in printed for name in named) and "accord can work here." in printed


def test_every_check_that_can_fail_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each check is shown a machine where it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "installed", lambda *names: None)
    monkeypatch.setattr(bootstrap, "chromium_found", lambda: False)
    monkeypatch.setattr(bootstrap, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(bootstrap, "read_stamp", lambda folder: {})
    monkeypatch.setattr(bootstrap, "OLDEST_PYTHON", (99, 0))
    for limit in ("DISK_GIGABYTES", "MEMORY_GIGABYTES"):
        monkeypatch.setattr(doctor, limit, 10**9)
    crash = Probe({}, "ImportError: libcudart.so")
    without_gpu = {"version": "2", "threads": 2, "bf16": True, "amx": False, "capability": "AVX2", "gpus": []}
    failing = [
        doctor.python_check(),
        doctor.setup_check(),
        *doctor.torch_checks(crash),
        doctor.torch_checks(Probe(without_gpu))[1],
        *doctor.libraries_checks(),
        doctor.vllm_check(None),
        doctor.vllm_check(crash),
        doctor.preload_check(None, None),
        doctor.preload_check(None, Path("/libiomp5.so")),
        doctor.qlora_check(None),
        doctor.qlora_check(crash),
        doctor.argilla_check(None, None),
        doctor.argilla_check(Path("/python"), crash),
        doctor.model_check(),
        doctor.browser_check(),
        doctor.disk_check(),
        doctor.memory_check(),
    ]
    assert [check.name for check in failing if check.ok] == []
    assert all(check.remedy and check.detail for check in failing)
    assert {check.name for check in failing if check.required} == {"Python", "torch", "libraries"}
    assert doctor.exit_code(failing) == 1
    assert doctor.exit_code([check for check in failing if not check.required]) == 0


def test_a_failing_check_without_a_remedy_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="what to do"):
        Check("thing", False, False, "broken", "")


def test_a_taken_port_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "ARGILLA_PORT", taken.getsockname()[1])
        assert not doctor.port_check().ok
    assert doctor.port_check().ok


def test_a_version_other_than_the_tested_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.ok for check in doctor.libraries_checks()] == [True, True]
    real = doctor.installed
    monkeypatch.setattr(
        doctor, "installed", lambda *names: "trl 1.12.0" if names == ("trl",) else real(*names)
    )
    present, tested = doctor.libraries_checks()
    assert present.ok and not tested.ok and not tested.required
    assert "trl 1.16.0" in tested.detail


def test_a_crashing_import_is_reported_and_spoils_only_what_follows() -> None:
    fine, crash = (
        "print('{\"version\": 1}', flush=True)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    )
    first, second = doctor.probe(fine, crash)
    assert first == Probe({"version": 1})
    assert "-11" in second.error
    assert "No module named" in doctor.probe("import no_such_module")[0].error
    assert "no answer" in doctor.probe("import time; time.sleep(9)", timeout_seconds=1)[0].error
    assert "No such file" in doctor.probe(fine, python=Path("/no/such/python"))[0].error
