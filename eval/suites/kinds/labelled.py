"""Prompts with answers that are known: a task of one's own, scored by overlap with the references.

    {"id": "support-17", "group": "returns",
     "prompt": "A customer asks how long a return may take. Answer with the number of days.",
     "reference": ["30 days", "thirty days"]}

A suite of one's own is a folder with a page, README.md, and a file items.jsonl of such lines. `prompt` is one message
of the user or a conversation that ends with one, [{"role": "user", "content": "..."}]; `reference` is one right answer
or several, and the best of them counts. Take 200 prompts or more that the model was not trained on, and ask for short
answers where an exact match is to mean something. The page's front matter names the kind:

    ---
    pretty_name: Questions about returns
    license: ours
    accord: {kind: labelled, family: quality, source: our support team}
    ---

`exact_match` and `f1` are SQuAD's (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): lower case, ASCII
punctuation and the articles a, an, the left out, then equality, or the harmonic mean of precision and recall over
words. Nothing left on both sides is a match, as in SQuAD 2. `bleu` is sacrebleu's sentence BLEU (Papineni et al. 2002;
Post 2018, https://arxiv.org/abs/1804.08771) with its defaults and effective order, from 0 to 100;
`rouge_1`, `rouge_2` and `rouge_l` are the F measures of rouge-score's rouge1, rouge2 and rougeL without stemming (Lin
2004). ROUGE knows the letters a to z and digits only, so it is 0 in other scripts; for Chinese and Japanese, which put
no spaces between words, trust none but exact_match.

Where every answer is one of a few labels, name them in the page's head, `labels: [refund, delivery, other]`: then
accuracy, precision, recall and F1 are measured in place of all this (eval/suites/labels.py).

Where we differ: BLEU is made for a whole corpus, whose counts it adds up before it divides. A paired test needs a value
for each prompt, so `bleu` is the mean of sentence BLEUs. For the answers "the cat sat on the mat" and "yes" to the
references "the cat sat on a mat" and "yes", the mean is (53.7 + 100) / 2 = 76.9, and corpus BLEU 54.1.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from accord.records import Message
from accord.text_metrics import bleu_and_rouge, exact_match, token_f1
from eval.suites.kind import Answered, Reply, SuiteRow, Value
from eval.suites.metrics import PROMPTS, QUALITY, Metric


class LabelledRow(SuiteRow):
    """One prompt and its right answer or answers."""

    prompt: str | list[Message] = Field(min_length=1)
    reference: str | list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_be_asked_and_compared(self) -> "LabelledRow":
        if not isinstance(self.prompt, str) and self.prompt[-1].role != "user":
            raise ValueError("prompt: the last message must be the user's")
        if not all(each.strip() for each in self.references):
            raise ValueError("reference: is empty; give the right answer, or leave the row out")
        return self

    @property
    def references(self) -> list[str]:
        """The right answers, as a list also where there is one."""
        return [self.reference] if isinstance(self.reference, str) else self.reference


def _prompts(row: LabelledRow) -> Sequence[Sequence[Message]]:
    return [[Message(role="user", content=row.prompt)] if isinstance(row.prompt, str) else row.prompt]


def _values(row: LabelledRow, replies: Sequence[Reply]) -> Mapping[str, Value]:
    text, references = replies[0].text, row.references
    return {
        "exact_match": float(exact_match(text, references)),
        "f1": max(token_f1(text, reference) for reference in references),
        **bleu_and_rouge(text, references),
    }


KIND = Answered(
    row=LabelledRow,
    metrics=(
        Metric(
            "exact_match", "Exact matches", "share", PROMPTS,
            "how many of the answers are a reference, but for case, punctuation and articles", QUALITY,
            ends=(0.0, 1.0), direction="higher",
        ),
        Metric(
            "f1", "Words shared with the reference", "F1, 0 to 1", PROMPTS,
            "how many words the answers and their references share", QUALITY, direction="higher",
        ),
        Metric(
            "bleu", "BLEU", "0 to 100", PROMPTS,
            "how many runs of one to four words of the answers stand in the references, too", QUALITY,
            direction="higher",
        ),
        Metric(
            "rouge_1", "ROUGE-1", "F, 0 to 1", PROMPTS,
            "how many single words the answers and their references share", QUALITY, direction="higher",
        ),
        Metric(
            "rouge_2", "ROUGE-2", "F, 0 to 1", PROMPTS,
            "how many pairs of neighbouring words the answers and their references share", QUALITY,
            direction="higher",
        ),
        Metric(
            "rouge_l", "ROUGE-L", "F, 0 to 1", PROMPTS,
            "how long the longest sequence of words is that the answers have in common with the references", QUALITY,
            direction="higher",
        ),
    ),
    prompts=_prompts,
    values=_values,
)  # fmt: skip
