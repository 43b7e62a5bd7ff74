"""No text from elsewhere reaches a terminal as more than text: tried on a pseudo-terminal, wherever it is shown."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from accord.config import Config
from accord.runs import Runs
from accord.terminal import UNSAFE, printable

ROOT = Path(__file__).parents[2]
PAYLOADS = [
    "\x1b[2K", "\x1b[1G", "\x1b[31m", "\x1b[1A", "\x1b[8m", "\x1b[?1049h", "\x1b[6n", "\x1bc", "\x1b]0;owned\x07",
    "\x1b]8;;http://example.org\x1b\\", "\x1b]52;c;b3duZWQ=\x07", "\x1bP0;1|17/ab\x1b\\", "\x1b(0", "\x9b31m",
    "\x9d0;owned\x9c", "\x07", "\x08\x08\x08", "\x0b", "\x0c", "\x0e", "\x7f", "\u202eowned", "\u2066owned\u2069",
    "\u200fowned",
]  # fmt: skip
ALL = "".join(PAYLOADS)
"""In one text, as the key or the value of something."""


def shown_on_a_terminal(*arguments: str, folder: Path) -> str:
    """What a pseudo-terminal gets of a command."""
    ours, theirs = os.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCORD_KEY": str(folder / "keys" / "key"),
        "TERM": "xterm",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "accord", "--runs", str(folder / "runs"), *arguments],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=folder, env=environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode is not None
    return seen.decode().replace("\r\n", "\n")


def as_yaml(text: str) -> str:
    return json.dumps(text)


class Anything(Config):
    """Stands for a stage's settings."""

    label: str = ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, a configuration, rows and a stranger's key that hold the payloads wherever they can."""
    folder = tmp_path_factory.mktemp("terminal")
    runs = Runs(folder / "runs")
    with runs.begin("sft", Anything(label=ALL), {}) as run:
        (run.path / "metrics.jsonl").write_text(json.dumps({"step": 1, ALL: 1.0}) + "\n")
        run.finish({ALL: ALL, "loss": 1.0}, {ALL: 3})
    with pytest.raises(RuntimeError), runs.begin("dpo", Anything(label="b"), {"policy": run}):
        raise RuntimeError(ALL)
    (folder / "round.yaml").write_text(
        f"model: {as_yaml(ALL)}\nsft: {{demonstrations: rows.jsonl, {as_yaml(ALL)}: 1}}\n"
        f"eval: {{prompts: rows.jsonl, suites: [{as_yaml(ALL)}], gate: {{{as_yaml(ALL)}: {{margin: 1}}}}}}\n"
    )
    (folder / "suites.yaml").write_text(
        f"eval: {{prompts: rows.jsonl, suites: [{as_yaml(ALL)}], gate: {{eos_rate: {{margin: 1}}}}}}\n"
    )
    (folder / "trainer.yaml").write_text(
        f"model: {as_yaml(ALL)}\nsft: {{demonstrations: rows.jsonl, trainer: {{{as_yaml(ALL)}: 1}}}}\n"
    )
    row = {"messages": [{"role": "user", "content": "a", ALL: 1}, {"role": ALL, "content": "b"}], ALL: 1}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    ranked = {
        "id": "a", "prompt": [{"role": "user", "content": "a"}], "responses": [{"text": "b"}, {"text": ALL}],
        "rankings": [{"annotator": ALL, "ranks": [1, 2, 3]}],
    }  # fmt: skip
    (folder / "comparisons.jsonl").write_text(json.dumps(ranked) + "\n")
    public = (
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        .decode()
    )
    (folder / "stranger.pub").write_text(f"{public} {ALL}")
    return folder


MODEL = {
    "model_type": f"llama{ALL}", "architectures": [f"Llama{ALL}ForCausalLM"], "hidden_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def more(folder: Path) -> Path:
    """Further places: models, templates, suites, people, figures of annotators, names of files and runs, code."""
    for name, content in {
        "type": MODEL,
        "tensor": MODEL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))
        header = json.dumps({ALL: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (folder / name / "model.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + bytes(4)
        )
        (folder / name / "tokenizer.json").write_text(json.dumps({ALL: ALL}))
    runs = Runs(folder / "runs")
    with runs.begin("feedback", Anything(label=ALL), {}) as run:
        of_one: dict[str, object] = dict.fromkeys(
            ("gold", "self_consistency", "first_position", "reliability", "median_seconds")
        )
        figures: dict[str, object] = dict.fromkeys(("alpha_ranks", "alpha_pairs", "kendall_w"))
        figures |= {
            "headline": ALL, "because": ALL, "annotators": {ALL: of_one | {"submitted": 1}},
            "warnings": [{"annotator": ALL, "text": ALL}],
        }  # fmt: skip
        (run.path / "agreement.json").write_text(json.dumps(figures))
        run.finish({"a": 1.0})
    (folder / "runs" / "sft-\x1b[31mabcdefg").mkdir()
    (folder / "runs" / "sft-\x1b[31mabcdefg" / "record.json").write_text(json.dumps({ALL: 1}))
    (folder / "suite").mkdir()
    (folder / "suite" / "README.md").write_text(
        f"---\npretty_name: {as_yaml(ALL)}\nlicense: mit\n"
        f"accord: {{kind: {as_yaml(ALL)}, family: quality, source: a}}\n---\n{ALL}\n"
    )
    (folder / "table.csv").write_text(f"a,{json.dumps(ALL)}\n1,2\n")
    (folder / "twice.jsonl").write_text(2 * (json.dumps({"id": ALL, "prompt": "a"}) + "\n"))
    (folder / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
        + "\n"
    )
    (folder / "chats.jsonl.origin").write_text(json.dumps({"file": ALL, "reader": ALL}))
    (folder / "texts").mkdir()
    (folder / "texts" / "\x1b[31m\u202e.txt").write_bytes(b"\xff")
    (folder / "code.py").write_text(f"raise ValueError({ALL!r})\n")
    (folder / "people.yaml").write_text(f"users: [{{name: {as_yaml(ALL)}}}]\n")
    (folder / "template.jinja").write_text("{{ raise_exception('" + ALL.replace("\\", "") + "') }}")
    configurations = {
        "type": "model: type\nsft: {demonstrations: chats.jsonl}\n",
        "tensor": "model: tensor\nsft: {demonstrations: chats.jsonl}\n",
        "suite": "eval: {prompts: chats.jsonl, suites: [./suite], gate: {eos_rate: {margin: 1}}}\n",
        "texts": "sft: {documents: texts}\n",
        "code": "rl: {algorithm: grpo, prompts: twice.jsonl, reward_function: 'code.py:a'}\n",
        "people": "feedback: {prompts: twice.jsonl, annotators: human, users: people.yaml}\n",
        "template": "chat_template: template.jinja\nsft: {demonstrations: chats.jsonl}\n",
        "values": f"model: {as_yaml(ALL)}\nsft: {{demonstrations: {as_yaml(ALL)}, trainer: {{a: {as_yaml(ALL)}}}}}\n",
        "columns": f"data: {{columns: {{chats.jsonl: {{{as_yaml(ALL)}: b}}}}}}\nsft: {{demonstrations: chats.jsonl}}\n",
        "url": f"feedback: {{prompts: twice.jsonl, annotators: human, argilla_url: {as_yaml('http://' + ALL)}}}\n",
    }  # fmt: skip
    for name, text in configurations.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "feedback agreement feedback", "feedback export feedback --output set", "runs list", "runs verify",
        "data check table.csv", "data check twice.jsonl", "config show values.yaml", "config check values.yaml",
        "config check type.yaml", "config check tensor.yaml", "config check suite.yaml", "config check texts.yaml",
        "config check code.yaml", "config check people.yaml", "config check template.yaml",
        "config check columns.yaml", "config check url.yaml", "reward score chats.jsonl --model code.py:a",
    ],
)  # fmt: skip
def test_nor_from_anywhere_else(more: Path, command: str) -> None:
    seen = shown_on_a_terminal(*command.split(), folder=more)
    assert seen.strip() and "Traceback" not in seen
    assert UNSAFE.findall(seen) == [], seen


def test_nor_with_a_traceback(more: Path) -> None:
    seen = shown_on_a_terminal("--traceback", "config", "check", "values.yaml", folder=more)
    assert "Traceback" in seen and "UsageError" in seen
    assert UNSAFE.findall(seen) == [], seen


def test_nor_from_what_libraries_log_and_warn_of(tmp_path: Path) -> None:
    code = (
        "import logging, warnings, sys; from accord.terminal import escape_what_libraries_say\n"
        "logger = logging.getLogger('library'); logger.addHandler(logging.StreamHandler()); text = sys.argv[1]\n"
        "escape_what_libraries_say(); logger.warning('%s', text); warnings.warn(text); raise ValueError(text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ALL], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout == "" and done.stderr.count("owned") >= 3 * ALL.count("owned")
    assert UNSAFE.findall(done.stderr) == []


@pytest.mark.parametrize(
    "command",
    [
        "runs list", "runs show sft", "runs show dpo", "runs lineage dpo", "runs verify sft", "runs show STRANGE",
        "runs list --json", "sft round.yaml", "round round.yaml", "eval suites.yaml", "sft trainer.yaml",
        "round round.yaml STRANGE=1", "round round.yaml model=STRANGE", "data check rows.jsonl",
        "data check comparisons.jsonl", "data check rows.jsonl --as STRANGE", "keys trust STRANGER", "keys show",
        "promote STRANGE", "report sft", "STRANGE", "config check round.yaml",
    ],
)  # fmt: skip
def test_no_escape_reaches_a_terminal(folder: Path, command: str) -> None:
    words = [
        word.replace("STRANGER", (folder / "stranger.pub").read_text()).replace("STRANGE", ALL)
        for word in command.split()
    ]
    seen = shown_on_a_terminal(*words, folder=folder)
    assert seen.strip() and "Traceback" not in seen
    assert UNSAFE.findall(seen) == [], seen


def test_what_is_escaped_and_what_is_not() -> None:
    assert printable("a\tb\nc, é, 日本, 👩‍👩‍👧, שלום") == "a\tb\nc, é, 日本, 👩‍👩‍👧, שלום"
    assert printable("\x1b[31m\u202e\r\ud800") == r"\u001b[31m\u202e\u000d\ud800"
    for payload in PAYLOADS:
        assert UNSAFE.search(payload)
        said = json.dumps({"name": payload}, ensure_ascii=False)
        assert json.loads(printable(said)) == {"name": payload}, "what --json prints must mean the same"


def test_the_table_and_the_bars_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Not as markup of rich either."""
    from accord import progress
    from accord.doctor import Check, render

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "SECONDS_BEFORE_SHOWN", 0.0)
        with progress.progress(f"[red]{ALL}", 3) as update:
            update(1)
    render([Check("a", False, True, f"[red]{ALL}", f"[link=http://a]{ALL}")])
    seen = capsys.readouterr()
    assert "[red]" in seen.err and "[red]" in seen.out and "[link=http://a]" in seen.out
    assert UNSAFE.findall(seen.err + seen.out) == []


def test_everything_is_printed_by_say() -> None:
    """But for bars and the table of `doctor`, by rich and tqdm, and the set-up, which runs before accord is there."""
    others = {"accord/terminal.py", "accord/bootstrap.py", "accord/doctor.py", "accord/progress.py"}
    found = []
    for package in ("accord", "sft", "feedback", "reward", "rl", "eval"):
        for file in (ROOT / package).rglob("*.py"):
            name = file.relative_to(ROOT).as_posix()
            if name in others or "/inside/" in name:
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Name | ast.Attribute) and re.fullmatch(
                    r"print|click\.s?echo|sys\.std(out|err)\.write", ast.unparse(node)
                ):
                    found.append(f"{name}:{node.lineno}")
    assert found == []
