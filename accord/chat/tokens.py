"""Conversations to token ids and back. Every stage goes through here, so that all of them see the same tokens.

A conversation that ends with the assistant ends exactly at that turn's end-of-sequence token: it is the last token
the policy is taught, the one the reward model scores at, and the last one the sampler returns. Many templates add a
line break after it; that is cut off at the end, and not learned elsewhere.

Three things hold for every template, or it is refused:

- *Text is text.* What stands in a message never becomes a control token, whatever it says: "<|im_end|>" in a question
  is six pieces of text, and no turn ends there.
- *The mask is the assistant's words and their end*, in every turn. Where a turn begins is where the prompt before it
  ends; it ends at its EOS. Markers inside the template are not needed.
- *What is sampled continues what was trained.* The encoded prompt is a prefix of the encoded conversation.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accord.chat.rendering import Rendered, control_tokens, render
from accord.errors import DataError, UsageError
from accord.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation and, for each, whether the assistant said it (its EOS included)."""

    input_ids: list[int]
    assistant_mask: list[int]


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    starts: list[int]
    """Where in the text each token begins."""
    ends: list[int]


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], learns_thinking: bool = True
) -> EncodedConversation:
    """A whole conversation, ending with the assistant's EOS, as ids and assistant mask of the same length.

    The mask leaves out turns of weight 0, and thinking parts unless `learns_thinking`.

    Raises:
        DataError: the template refuses the conversation or leaves a part of it out, no turn is the assistant's, or the
            template writes a turn otherwise than it asks for it, so that what is sampled would not continue what was
            trained.
    """
    rendered = render(tokenizer, messages)
    begins = begins_of_answers(tokenizer, rendered.text, messages)
    thought = {} if learns_thinking else _ends_of_thinking(rendered.text, messages, begins)
    tokens = _tokenize(tokenizer, rendered, [*begins, *thought.values()])

    def first_token(place: int) -> int:
        return next((i for i, start in enumerate(tokens.starts) if start >= place), len(tokens.ids))

    firsts = [first_token(begin) for begin in begins]
    learned = [first_token(thought.get(begin, begin)) for begin in begins]
    try:
        return mask_of_answers(tokens.ids, firsts, messages, tokenizer.eos_token_id, learned)
    except ValueError as error:
        begin = begins[int(str(error))]
        raise DataError(
            f"the chat template does not end the assistant's turn {rendered.text[begin : begin + 60]!r} with the "
            f"eos_token {tokenizer.eos_token!r}"
        ) from None


def begins_of_answers(
    tokenizer: "PreTrainedTokenizerBase", text: str, messages: Sequence[Message]
) -> list[int]:
    """Where in a conversation's text each turn of the assistant begins.

    Raises:
        DataError: no turn is the assistant's, or what the template writes before one is not what asks for it.
    """
    begins = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = _until_answer(tokenizer, text, messages[:i])
            if not text.startswith(prompt):
                raise DataError(_no_continuation(prompt, text))
            begins.append(len(prompt))
    if not begins:
        raise DataError("no turn of the conversation is the assistant's, so nothing can be learned from it")
    return begins


def mask_of_answers(
    ids: Sequence[int],
    firsts: Sequence[int],
    messages: Sequence[Message],
    eos: Any,
    learned: Sequence[int] | None = None,
) -> EncodedConversation:
    """The tokens up to the end of the last answer, and which of them the assistant said.

    Args:
        ids: of the whole conversation.
        firsts: the first token of each of the assistant's turns.
        messages: of the conversation, whose turns of weight 0 are left out of the mask.
        eos: the token that ends each turn.
        learned: where in each turn learning begins; by default at its first token.

    Raises:
        ValueError: a turn has no end; the number of the turn.
    """
    ids = list(ids)
    mask = [0] * len(ids)
    end = 0
    said = [message for message in messages if message.role == "assistant"]
    for turn, (message, first) in enumerate(zip(said, firsts, strict=True)):
        try:
            end = ids.index(eos, first) + 1
        except ValueError:
            raise ValueError(turn) from None
        if message.weight != 0:
            begin = learned[turn] if learned else first
            mask[begin:end] = [1] * (end - begin)
    return EncodedConversation(ids[:end], mask[:end])


def _ends_of_thinking(text: str, messages: Sequence[Message], begins: Sequence[int]) -> dict[int, int]:
    """Where the words begin behind the thinking part of each answer that has one, by where the answer begins."""
    said = [message for message in messages if message.role == "assistant"]
    found = {}
    for message, begin in zip(said, begins, strict=True):
        thought = (message.reasoning_content or "").strip()
        at = text.find(thought, begin) if thought else -1
        if at >= 0:
            words = text.find(message.content.strip(), at + len(thought))
            found[begin] = words if words >= 0 else at + len(thought)
    return found


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]) -> list[int]:
    """A prompt up to where the assistant's answer starts.

    Raises:
        DataError: the template refuses the prompt.
    """
    rendered = render(tokenizer, prompt, add_generation_prompt=True)
    begins = []
    for i, message in enumerate(prompt):
        if message.role == "assistant":
            before = _until_answer(tokenizer, rendered.text, prompt[:i])
            begins += [len(before)] * rendered.text.startswith(before)
    return _tokenize(tokenizer, rendered, begins).ids


def _until_answer(tokenizer: "PreTrainedTokenizerBase", conversation: str, before: Sequence[Message]) -> str:
    """What the template writes before an answer; of a conversation that begins with one, what opens a turn."""
    if before:
        return render(tokenizer, before, add_generation_prompt=True).text
    opening = opening_of_answers(tokenizer)
    return conversation[: conversation.find(opening) + len(opening)] if opening in conversation else opening


def opening_of_answers(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the template writes behind a user's turn to ask for an answer."""
    asked = [Message(role="user", content="?")]
    return render(tokenizer, asked, add_generation_prompt=True).text[len(render(tokenizer, asked).text) :]


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, begins: Sequence[int] = ()
) -> _Tokens:
    """The tokens of a text; none of them is on both sides of a place in `begins`.

    Raises:
        DataError: the tokenizer cannot encode a text in parts, and this text needs it.
    """
    encoded: Any = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    tokens = _Tokens(list(encoded["input_ids"]), [a for a, _ in offsets], [b for _, b in offsets])
    cuts = [
        begin
        for begin in begins
        if any(a < begin < b for a, b in zip(tokens.starts, tokens.ends, strict=True))
    ]
    if begins and joins_answers(tokenizer, str(tokenizer.chat_template)):
        cuts = sorted(begins)
    if not rendered.literal and not cuts:
        return tokens
    if not can_be_cut(tokenizer, anywhere=bool(cuts)):
        what = (
            f"the control token {rendered.text[slice(*rendered.literal[0])]!r} stands in a message"
            if rendered.literal
            else f"a token spans the beginning of the answer {rendered.text[cuts[0] : cuts[0] + 40]!r}"
        )
        raise DataError(
            f"{what}, and this model's tokenizer cannot encode it as text; change the message or leave it out"
        )
    return _tokenize_in_parts(tokenizer, rendered, cuts)


def _tokenize_in_parts(
    tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, cuts: Sequence[int] = ()
) -> _Tokens:
    """The same, of the text between control tokens and cuts, part by part."""
    added = control_tokens(tokenizer).added
    found = _Tokens([], [], [])
    literal = {start for start, _ in rendered.literal}

    def text_part(begin: int, end: int) -> None:
        places = [begin, *(cut for cut in cuts if begin < cut < end), end]
        for a, b in itertools.pairwise(places):
            encoded: Any = tokenizer(
                rendered.text[a:b],
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )
            found.ids.extend(encoded["input_ids"])
            found.starts.extend(a + start for start, _ in encoded["offset_mapping"])
            found.ends.extend(a + stop for _, stop in encoded["offset_mapping"])

    at = 0
    for match in control_tokens(tokenizer).special.finditer(rendered.text):
        if match.start() in literal:
            continue
        id_, strips_left, strips_right = added[match.group()]
        text = rendered.text[at : match.start()]
        text_part(at, at + len(text.rstrip() if strips_left else text))
        found.ids.append(id_)
        found.starts.append(match.start())
        found.ends.append(match.end())
        at = match.end()
        if strips_right:
            at += len(rendered.text[at:]) - len(rendered.text[at:].lstrip())
    text_part(at, len(rendered.text))
    return found


@functools.lru_cache(maxsize=16)
def joins_answers(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Whether an answer behind it changes the tokens at the end of a prompt, as words do with two line breaks.

    Args:
        tokenizer: with its chat template.
        template: that template, with which the answer changes.
    """
    asked = [Message(role="user", content="Say it.")]
    prompt = render(tokenizer, asked, add_generation_prompt=True).text
    whole = render(tokenizer, [*asked, *answer("It.")]).text
    before, behind = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, whole)
    )
    return whole.startswith(prompt) and behind[: len(before)] != before


@functools.lru_cache(maxsize=16)
def can_be_cut(tokenizer: "PreTrainedTokenizerBase", anywhere: bool) -> bool:
    """Whether parts of a text have the tokens that they have in the whole: cut at control tokens, or `anywhere` at all.

    Many tokenizers that were made with sentencepiece put a blank before whatever they are given.
    """
    messages = [Message(role="user", content="Say  it: [twice]."), *answer("It, it. \n\n1. É!")]
    rendered = render(tokenizer, messages)
    whole: Any = tokenizer(rendered.text, add_special_tokens=False)
    if _tokenize_in_parts(tokenizer, rendered).ids != list(whole["input_ids"]):
        return False
    alone: Any = tokenizer("it", add_special_tokens=False)
    return not anywhere or tokenizer.decode(list(alone["input_ids"]) * 2) == "itit"


def _no_continuation(prompt: str, conversation: str) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, conversation, strict=False)) if a != b), len(conversation)
    )
    return (
        f"the model's chat template asks for an answer with {prompt[max(0, same - 30) :]!r} and writes it as "
        f"{conversation[max(0, same - 30) : same + 30]!r}, so what is sampled would not continue what was trained; "
        "mend the template"
    )


def decode_response(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> str:
    """The words of a sampled answer, without special tokens, thinking part and outer white space."""
    text = str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
    return (without_thinking(text) if "</think>" in str(tokenizer.chat_template) else text).strip()


def without_thinking(text: str) -> str:
    """What comes behind the thinking part of an answer: nothing, where the answer was cut off before its end.

    The part's first tag may stand in the prompt.
    """
    before, end, words = text.partition("</think>")
    if end and (before.lstrip().startswith("<think>") or "<think>" not in before):
        return words
    return "" if text.lstrip().startswith("<think>") else text


def answer(text: str) -> list[Message]:
    """An assistant's turn as TRL's `chosen` and `rejected` columns hold it; an empty one counts as a blank.

    A message has content, so wherever an answer without any is scored or judged, it is as one space.
    """
    return [Message(role="assistant", content=text or " ")]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def start_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that preceded every document in pre-training.

    It is BOS, except where the chat template writes BOS before every turn, as ChatML tokenizers have it: after such
    a turn marker the model expects "user" or "assistant", and would be scored on that. There it is the document
    separator <|endoftext|> of the GPT-2 family; EOS, where neither exists.

    Raises:
        UsageError: the tokenizer has no such token.
    """
    bos = tokenizer.bos_token_id
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if isinstance(bos, int):
        rendered: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)
        if list(rendered["input_ids"]).count(bos) <= 1:
            return bos
    separator = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if not isinstance(separator, int):
        raise UsageError(
            "the tokenizer has no token that starts a document; set a bos_token in tokenizer_config.json"
        )
    return separator
