"""Raw text for continued pretraining: documents, each as its tokens between the marks that pretraining had.

A file is one document (`.txt`, `.md`), a folder is all such files in it, and JSON Lines, JSON, CSV or Parquet hold one
a row in the column `text`:

    {"text": "A fever of more than 39 degrees is ..."}

A document longer than a sequence fills several rows, one behind the other, and nothing of it is lost. What is written
in it is text: "<|im_end|>" in a document ends no turn.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.bundled import data_path
from accord.data.files import Chunk, Fault, RawRow, chunks, line_of
from accord.errors import DataError
from accord.text_files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (".txt", ".md")
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""What ended a document in the pretraining of the model families that there are; of these the first that is known."""


def plain_files(reference: str) -> list[Path]:
    """The files of plain text that a reference names; none where it names a file of rows.

    Raises:
        DataError: it is a folder without any.
    """
    path = data_path(reference)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in PLAIN and each.is_file())
        if not found:
            raise DataError(f"{reference}: the folder holds no .txt or .md file")
        return found
    return [path] if path.suffix.lower() in PLAIN else []


def document_chunks(reference: str, documents: int) -> Iterator[Chunk]:
    """The documents of a file or folder, so many at a time.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if files := plain_files(reference):
        for number, path in enumerate(files):  # one a chunk: there is no saying how long one is
            yield Chunk(reference, number, read=(RawRow(f"{path}:1", {"text": read_text(path)}),))
        return
    yield from chunks(reference, documents)


def document_marks(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, int]:
    """The token before and the token behind a document, as pretraining had them."""
    from accord.chat.tokens import start_of_text

    start = start_of_text(tokenizer)
    known = tokenizer.get_vocab()
    ends = [known[text] for text in ENDS if text in known]
    end = start if start in ends else ends[0] if ends else tokenizer.eos_token_id
    return start, int(end)


def encode_documents(
    tokenizer: "PreTrainedTokenizerBase",
    chunk: Chunk,
    max_sequence_tokens: int,
    add: Callable[[Sequence[int], Sequence[int], int, str], None],
    facts: Any,
) -> None:
    """Encode the documents of a chunk.

    Args:
        tokenizer: of the model that learns.
        chunk: of documents.
        max_sequence_tokens: a longer document fills several rows.
        add: called for each row with its tokens, which of them are learned, the document's line, and its JSON.
        facts: `accord.data.encoding.Facts`, where counts and faults go.
    """
    start, end = document_marks(tokenizer)
    for raw in chunk.rows():
        facts.rows += 1
        fault = _fault(raw)
        if fault:
            facts.fault = fault
            return
        assert isinstance(raw, RawRow)
        encoded: Any = tokenizer(raw.columns["text"], add_special_tokens=False, split_special_tokens=True)
        ids = [start, *encoded["input_ids"], end]
        line = line_of(raw.place)
        written = json.dumps(raw.columns, ensure_ascii=False)
        # One token stands in two rows: the last of one is what the first word of the next follows on.
        for begin in range(0, len(ids) - 1, max_sequence_tokens - 1):
            part = ids[begin : begin + max_sequence_tokens]
            add(part, [0, *[1] * (len(part) - 1)], line, "" if begin else written)
        facts.split += len(ids) > max_sequence_tokens
        facts.synthetic += "synthetic" in raw.columns


def _fault(raw: RawRow | Fault) -> str:
    if isinstance(raw, Fault):
        return f"{raw.place}: {raw.message}"
    text = raw.columns.get("text")
    if not isinstance(text, str):
        found = "no column 'text'" if text is None else f"{type(text).__name__} in the column 'text'"
        return f"{raw.place}: a document is a text in the column 'text', found {found}"
    if not text.strip():
        return f"{raw.place}: text: is blank; leave the row out"
    return ""
