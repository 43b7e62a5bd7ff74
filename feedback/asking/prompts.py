"""The prompts that the policy answers for annotators."""

from pathlib import Path

from accord.errors import UsageError
from accord.records import Prompt, conversation_id, read_jsonl


def read_prompts(file: Path, most: int | None) -> dict[str, Prompt]:
    """The first prompts of a file by id; a prompt without an id is named by its content.

    Raises:
        DataError: a bad file.
        UsageError: two have the same id.
    """
    found: dict[str, Prompt] = {}
    for prompt in read_jsonl(file, Prompt)[:most]:
        name = prompt.id or conversation_id(prompt.prompt, 12)
        if name in found:
            what = f"the id '{name}'" if prompt.id else "the same prompt"
            raise UsageError(f"{prompt.place}: {what} stands in {found[name].place}, too; leave one out")
        found[name] = prompt
    return found
