"""Writes docs/suites.md from the suites' own pages.

.venv/bin/python docs/make_suites.py
"""

from pathlib import Path

from eval.suites.metrics import Metric
from eval.suites.suite import Suite, find_suite, read_items, shipped

PAGE = Path(__file__).parent / "suites.md"
INTRODUCTION = """\
# Suites

A suite is a set of items that both models go through. `eval.suites` names those of an evaluation, in a round's
configuration or in `gate.yaml`; a margin or a floor for one of their metrics lets it decide
([read-a-report.md](read-a-report.md#floors)):

```yaml
suites: [sentence_pairs, harmless_lookalikes]
gate:
  sentence_pairs/lean: {margin: 0.10}
  harmless_lookalikes/refused: {margin: 0.05, at_most: 0.2}
```

A metric's direction says which values are better; `gate` may name another. Items that were made from one template are
resampled together. Every suite has a page that says what it cannot show; read it before you give it a margin.

**Your own** suite is a folder with two files: `README.md`, whose head names the kind as those of the suites below do,
and `items.jsonl` with the kind's columns. Name it by its path: `suites: [./triage]`. A duplicate id, a line without a
column, and a single item are errors that name file and line. Which risk it is about follows from its kind, or from
`risk:` in the head (`privacy_leakage`, `jailbreak`, `truthfulness`, `multi_turn`, `other_languages`, ...); the report's
coverage table goes by that. A kind of your own is a file beside them:
[extend.md](extend.md#a-kind-of-suite).

**Labelled tasks of your own** (classification, extraction, questions, summaries) are of the kind `labelled`; the whole
page is five lines of YAML, with or without `labels`:

```yaml
---
pretty_name: What a customer writes about
license: ours
accord: {kind: labelled, family: quality, source: our support team, labels: [refund, delivery, other]}
---
```

A line of `items.jsonl` is `{"id": "1", "prompt": "Where is my parcel? Answer refund, delivery or other.", "reference":
"delivery"}`; `prompt` may also be a conversation, and `reference` several right answers where there are no labels.

Without labels the metrics are `exact_match`, `f1` (SQuAD's), `bleu` (sacrebleu's, of sentences), `rouge_1`, `rouge_2`
and `rouge_l` (rouge-score's); `pip install 'accord[suites]'` brings these packages. With labels they are `accuracy`,
`unread` (answers that are no label), `macro_precision`, `macro_recall`, `macro_f1`, and for each label such as
`precision_refund`, `recall_refund` and `f1_refund`.

All have paired intervals over items and may have a margin. An answer counts as the label that it is, or that it names
alone of all labels. Macro figures are means over labels, so a rare label counts as much as a frequent one.

**Refusals and toxicity** are counted by rules, of English phrases and of words: they need nothing, never change their
mind, and err. `raters` names a classifier, any model for text classification in transformers' form, or a judge in their
place, for all suites that count either:

```yaml
raters:
  refusals: {by: organisation/refusal-classifier, labelled: refusals.jsonl}
  toxicity: {by: "judge:https://host/v1#model-name"}
```

`labelled` is a file of answers that people labelled, `{"prompt": ..., "completion": ..., "refused": true}` (or
`"toxic"`), 200 or more, of models like yours: the page then says how often the rater and the rule err on them. The same
figures without an evaluation, for any file: `python benchmarks/refusal_accuracy.py FILE --by CLASSIFIER`.

**Published** data sets are read from packages that `accord eval install-suites` installs, and named `public:<name>`;
`accord eval suites` lists them. The pages in `eval/suites/public/` name their licences and authors.

This page is written by `docs/make_suites.py`.
"""


def page() -> str:
    """The page's text."""
    suites = [find_suite(name) for name in shipped()]
    parts = [INTRODUCTION]
    for family, title in (("bias", "Bias"), ("safety", "Safety"), ("quality", "Quality")):
        parts += [f"## {title}\n", *(_section(suite) for suite in suites if suite.family == family)]
    return "\n".join(parts)


def better(metric: Metric) -> str:
    """Which values are better, in words."""
    return (metric.direction or "yours to say").replace("_", " ")


def _section(suite: Suite) -> str:
    rows = "\n".join(
        f"| `{metric.name}` | {better(metric)} | {metric.meaning} ({metric.unit}) |"
        for metric in suite.metrics.values()
    )
    link = f"../eval/suites/data/{suite.name}/README.md"
    how = "scored by log-likelihood" if suite.is_by_likelihood else "answered"
    return (
        f"### {suite.title}\n\n[`{suite.name}`]({link}), {len(read_items(suite))} items, {how}, {suite.license}. "
        f"{suite.measures}\n\n| metric | better is | what it is |\n|---|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
