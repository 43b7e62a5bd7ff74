"""Data that a model makes from seeds: answers to prompts, paraphrases of prompts, or new prompts.

    data:
      generate: {kind: answers, seeds: prompts.jsonl, model: "https://host/v1#a-model", samples_per_seed: 2}

`accord data generate CONFIG` makes a run `generate-<id>` of it. Its rows.jsonl holds what stays: demonstrations, or
prompts, each with the column `synthetic`, which says who made it from what. dropped.jsonl holds the rest, with the
reasons. `demonstrations: [{path: "run:generate-<id>"}]` learns from them.

New prompts from some that are shown: Wang et al. 2022 (Self-Instruct, https://arxiv.org/abs/2212.10560), whose filter
by ROUGE-L is one by near duplicates here.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from accord.bundled import data_path
from accord.chat.tokens import answer
from accord.data.config import DataConfig, GenerateConfig
from accord.data.quality.clean import Cleaner, Wishes
from accord.data.quality.near import SIMILAR, NearTexts, jaccard, shingles
from accord.data.rows import Rows, open_data
from accord.data.synthetic import synthetic
from accord.data.writers import Journal, Reply, Request, Served, write_here, write_there
from accord.errors import DataError, UsageError
from accord.models.references import Model, resolve
from accord.progress import EveryFewSeconds
from accord.records import Demonstration, Message, Prompt, content_id, messages_as_dicts, read_jsonl
from accord.runs import DataFile, Run, Runs
from accord.sampling.config import SamplingConfig
from accord.terminal import say
from accord.text_files import write_jsonl

INSTRUCTIONS = {
    "paraphrases": "Say the following request in other words. It must ask for exactly the same. Reply with the new "
    "request and nothing else.\n\n{text}",
    "prompts": "These are requests that people made:\n\n{text}\n\nWrite one new request of the same sort, about "
    "something else. Reply with the new request and nothing else.",
}
LABEL = re.compile(r"(?:new |rewritten )?(?:request|prompt)\s*:\s*", re.IGNORECASE)
QUOTES = ('""', "''", "“”", "«»", "„“")

Dropped = list[dict[str, Any]]


def generate(
    config: GenerateConfig, runs: Runs, sampling: SamplingConfig | None = None, data: DataConfig | None = None,
    seeds: Rows | None = None,
) -> Run:  # fmt: skip
    """Have a model write; returns the finished run, whose rows.jsonl holds what stays.

    Args:
        config: see `GenerateConfig`.
        runs: where the run is kept. What was sampled before a kill is not sampled again.
        sampling: how a model is sampled that is computed here.
        data: how the file of seeds is read.
        seeds: rows in place of the file that `config` names.

    Raises:
        DataError: a bad seed, or nothing that was written stays.
        UsageError: the model cannot be found, or `drop` names what there is not.
        AccordError: the server does not answer.
    """
    config = open_data(config, runs, data, seeds=seeds)
    if config.model is None:
        raise UsageError("data.generate.model: is needed; name the model that writes")
    wishes = Wishes.of(config.drop)
    file = DataFile(data_path(config.seeds))
    model = (
        Served.of(config.model)
        if config.model.startswith(("http://", "https://"))
        else resolve(config.model, runs)
    )
    with runs.begin("generate", config, {"seeds": file, "model": model}) as run:
        if run.is_done:
            return run
        prompts = read_jsonl(file.path, Prompt)
        requests = requests_for(config, prompts)
        replies = _replies(config, run, model, sampling or SamplingConfig(), requests)
        made_by = {"run": run.id, "kind": config.kind, "model": model.reference}
        rows, dropped = _filtered(config, wishes, prompts, requests, replies, made_by)
        reasons = Counter(each["what"] for row in dropped for each in row["reasons"][:1])
        if not rows:
            listed = ", ".join(f"{what} {count}" for what, count in reasons.most_common())
            raise DataError(
                f"nothing of what {model.reference} wrote stays ({listed}); look at its replies in "
                f"{run.path / 'checkpoints'}, then ask otherwise or drop less"
            )
        write_jsonl(run.path / "rows.jsonl", rows)
        write_jsonl(run.path / "dropped.jsonl", dropped)
        run.finish(_figures(config, prompts, replies, len(rows)), reasons)
    return run


def requests_for(config: GenerateConfig, seeds: Sequence[Prompt]) -> list[Request]:
    """What is asked, in the order of the seeds."""
    instruction = config.instruction or INSTRUCTIONS.get(config.kind, "")
    found = []
    for number in range(len(seeds) * config.samples_per_seed):
        first = number // config.samples_per_seed
        seed = int(content_id([config.seed, number], 8), 16) >> 1
        rows = [first]
        if config.kind == "answers":
            messages = list(seeds[first].prompt)
        else:
            text = seeds[first].prompt[-1].text
            if config.kind == "prompts":
                others = [i for i in range(len(seeds)) if i != first]
                rows += random.Random(seed).sample(others, min(config.examples - 1, len(others)))
                text = "\n\n".join(f"- {seeds[i].prompt[-1].text}" for i in rows)
            messages = [Message(role="user", content=instruction.replace("{text}", text))]
        found.append(Request(number, messages, seed, rows))
    return found


def _replies(
    config: GenerateConfig,
    run: Run,
    model: Model | Served,
    sampling: SamplingConfig,
    requests: Sequence[Request],
) -> list[Reply]:
    journal = Journal(run.path / "checkpoints" / "replies.jsonl")
    lines = EveryFewSeconds()

    def show(done: int) -> None:
        if lines.is_due(at_once=done == len(requests)):
            say(f"generate: {done} of {len(requests)} requests answered")

    asked = config.max_response_tokens, config.temperature
    if isinstance(model, Served):
        waiting = [request for request in requests if request.number not in journal.replies]
        write_there(model, waiting, journal, *asked, config.requests_at_a_time)
    else:
        write_here(model, sampling, requests, journal, *asked, show)
    journal.close()  # after an error it stays open: replies that are under way are paid for, too
    return [journal.replies[request.number] for request in requests]


def _filtered(
    config: GenerateConfig, wishes: Wishes, seeds: Sequence[Prompt], requests: Sequence[Request],
    replies: Sequence[Reply], made_by: dict[str, str],
) -> tuple[list[dict[str, Any]], Dropped]:  # fmt: skip
    """The rows that stay, and what is dropped, each with its reasons; both in the order of the requests."""
    texts = [reply.text if config.kind == "answers" else bare(reply.text) for reply in replies]
    asked = [seeds[request.rows[0]] for request in requests]
    verbatim = {turn.text.strip() for seed in seeds for turn in seed.prompt} - {""}
    reasons: dict[int, list[dict[str, str]]] = {}

    def drop(i: int, what: str, detail: str) -> None:
        reasons.setdefault(i, []).append({"what": what, "detail": detail})

    for i, (reply, text, seed) in enumerate(zip(replies, texts, asked, strict=True)):
        copies = {turn.text.strip() for turn in seed.prompt} if config.kind == "answers" else verbatim
        if reply.finish == "too_long":
            drop(i, "too_long", "with an answer it may have more than sampling.max_sequence_tokens")
        elif not text or "\0" in text:
            drop(i, "blank", "no text, or one that no row may hold")
        elif reply.finish == "length":
            drop(i, "cut_off", f"after {config.max_response_tokens} tokens")
        elif text in copies:
            drop(i, "verbatim", "a copy of a seed")
    left = [i for i in range(len(texts)) if i not in reasons]
    question = [Message(role="user", content=each.prompt[-1].text) for each in asked]
    said = [Demonstration(messages=[question[i], *answer(texts[i])]) for i in left]
    cleaner = Cleaner(wishes)
    cleaner.look(said)
    for bad in cleaner.take(said, list(map(str, left))).dropped:
        for each in bad["reasons"]:
            drop(int(bad["place"]), each["what"], each["detail"])
    left = [i for i in left if i not in reasons]
    for i, detail in _near(config, seeds, requests, texts, left):
        drop(i, "near_duplicates", detail)
    rows = [
        _row(config, seeds, requests[i], texts[i], made_by) for i in range(len(texts)) if i not in reasons
    ]
    dropped = [
        {
            "request": i + 1,
            "seed_rows": [at + 1 for at in requests[i].rows],
            "reasons": reasons[i],
            "text": texts[i],
        }
        for i in sorted(reasons)
    ]
    return rows, dropped


def _near(
    config: GenerateConfig, seeds: Sequence[Prompt], requests: Sequence[Request], texts: Sequence[str],
    left: Sequence[int],
) -> list[tuple[int, str]]:  # fmt: skip
    """What is near an earlier text: an answer to the same seed, or, of prompts, a seed or any other."""
    found = []
    if config.kind == "answers":
        before: dict[int, list[tuple[int, frozenset[str]]]] = {}
        for i in left:
            mine, others = shingles(texts[i]), before.setdefault(requests[i].rows[0], [])
            near = [(jaccard(mine, theirs), number) for number, theirs in others]
            similarity, number = max(near, default=(0.0, 0))
            if similarity >= SIMILAR:
                found.append((i, f"{similarity:.2f} like that to request {number + 1}"))
            else:
                others.append((i, mine))
        return found
    index = NearTexts()
    for _ in index.nearest((seed.prompt[-1].text for seed in seeds), notes=lambda i: f"seed {i + 1}"):
        pass
    near_ones = index.nearest((texts[i] for i in left), notes=lambda i: f"that to request {left[i] + 1}")
    for i, hit in zip(left, near_ones, strict=True):
        if hit:
            found.append((i, f"{hit.similarity:.2f} like {hit.note}"))
    return found


def _row(
    config: GenerateConfig, seeds: Sequence[Prompt], request: Request, text: str, made_by: dict[str, str]
) -> dict[str, Any]:
    seed = seeds[request.rows[0]]
    others = {} if config.kind == "prompts" else dict(seed.model_extra or {})
    if config.kind == "answers":
        columns = {"messages": messages_as_dicts([*seed.prompt, *answer(text)])}
    else:
        before = [] if config.kind == "prompts" else seed.prompt[:-1]
        columns = {"prompt": messages_as_dicts([*before, Message(role="user", content=text)])}
    return synthetic(
        {**others, **columns}, **made_by, seed=request.seed, seed_rows=[at + 1 for at in request.rows]
    )


def bare(text: str) -> str:
    """A prompt as it was asked for, without quotation marks around it or "New request:" before it."""
    text = LABEL.sub("", text.strip(), count=1) if LABEL.match(text.strip()) else text.strip()
    inner = text[1:-1]
    is_quoted = (
        len(text) > 1 and text[0] + text[-1] in QUOTES and text[0] not in inner and text[-1] not in inner
    )
    return (inner if is_quoted else text).strip()


def _figures(
    config: GenerateConfig, seeds: Sequence[Prompt], replies: Sequence[Reply], kept: int
) -> dict[str, Any]:
    """Cost and yield."""
    prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies)
    tokens = sum(reply.tokens or 0 for reply in replies)
    price = (
        prompt_tokens * config.price_of_million_prompt_tokens + tokens * config.price_of_million_tokens
    ) / 1e6
    has_price = config.price_of_million_prompt_tokens or config.price_of_million_tokens
    return {
        "seeds": len(seeds), "asked": len(replies), "written": sum(bool(reply.text) for reply in replies),
        "kept": kept, "yield": kept / len(replies), "prompt_tokens": prompt_tokens, "tokens": tokens,
        "tokens_unknown": sum(reply.tokens is None and reply.finish != "too_long" for reply in replies),
        "seconds": sum(reply.seconds for reply in replies), "price": price if has_price else None,
        "price_of_a_kept_row": price / kept if has_price else None,
    }  # fmt: skip
