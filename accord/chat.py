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
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accord.errors import DataError, UsageError
from accord.records import Message, messages_as_dicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("accord.chat")

PROBE = (
    ("system", "Answer  briefly."), ("user", " Name a prime.\n"), ("assistant", "Seven."), ("user", "Another?"),
    ("assistant", "Eleven, or\n\nthirteen. "), ("user", "\tThanks!"), ("assistant", "\nNot at all."),
)  # fmt: skip
"""Several turns, every role, and white space where it is often lost."""
PADDING = "<|pad|>"
"""What a tokenizer gets that has no token to spare."""
TEMPLATES = ("chatml", "llama3", "zephyr", "mistral", "gemma")
"""The chat templates in accord/models/chat_templates."""


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation and, for each, whether the assistant said it (its EOS included)."""

    input_ids: list[int]
    assistant_mask: list[int]


@dataclass(frozen=True)
class _Rendered:
    """A conversation as the template writes it, and the parts of it that only look like control tokens."""

    text: str
    literal: list[tuple[int, int]] = field(default_factory=list)
    """Where in the text: from and up to."""


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    starts: list[int]
    """Where in the text each token begins."""
    ends: list[int]


def prepare_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", name: str, add_padding: bool = False
) -> "PreTrainedTokenizerBase":
    """Check a tokenizer for training on conversations: with a probe of several turns, all three promises above.

    The EOS becomes the token that ends the assistant's turns in the template, which is not always the one that ended
    a document in pre-training. Padding gets a token of its own: collators that take EOS mask the EOS to be learned.
    The template becomes plain Jinja, which every server reads: `{% generation %}` is known to transformers alone.

    Args:
        tokenizer: is changed.
        name: of the model, for messages.
        add_padding: where no control token is to spare for padding, add one; the embeddings must grow by its row.

    Raises:
        UsageError: no chat template, or one that breaks a promise; no token ends a turn; none is there for padding.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            f"model {name} has no chat template; set `chat_template` to one of {', '.join(TEMPLATES)}, to a "
            "file.jinja, or to a model whose template it shall have"
        )
    _make_plain(tokenizer, name)
    probe = _probe(tokenizer, name)
    _set_end_of_turn(tokenizer, name, probe)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        _set_padding(tokenizer, name, probe, add_padding)
    try:
        encoded = encode_conversation(tokenizer, probe)
        for i, message in enumerate(probe):
            if message.role == "assistant":
                prompt = encode_prompt(tokenizer, probe[:i])
                if encoded.input_ids[: len(prompt)] != prompt:
                    length = len(prompt)
                    raise DataError(
                        f"asked for an answer, the tokens say {tokenizer.decode(prompt)[-40:]!r}, and in the whole "
                        f"conversation {tokenizer.decode(encoded.input_ids[:length])[-40:]!r}, so what is sampled "
                        "would not continue what was trained"
                    )
    except DataError as error:
        raise UsageError(f"model {name}: {error}") from None
    return tokenizer


def render_probe(tokenizer: "PreTrainedTokenizerBase", name: str) -> str:
    """The probe as the template writes it.

    Raises:
        UsageError: the template takes no conversation of user and assistant by turns.
    """
    return _render(tokenizer, _probe(tokenizer, name)).text


def _make_plain(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Take the generation markers out of the template, or of each of several; what it writes stays the same.

    Raises:
        UsageError: a template of several is called by none, because there is no default.
    """
    given: Any = tokenizer.chat_template
    if isinstance(given, dict) and "default" not in given:
        raise UsageError(
            f"model {name} has several chat templates ({', '.join(given)}) and none of them is called default; set "
            "`chat_template` to a file that holds the right one"
        )
    # An `if` is as transparent as the markers, and its tags eat as much white space.
    plain = {
        key: re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", _as_if, text)
        for key, text in (given if isinstance(given, dict) else {"default": given}).items()
    }
    if plain == given or plain["default"] == given:
        return
    before = render_probe(tokenizer, name)
    tokenizer.chat_template = plain if isinstance(given, dict) else plain["default"]  # type: ignore[assignment]
    if render_probe(tokenizer, name) != before:
        raise UsageError(
            f"model {name}: its chat template writes something else without its generation markers, which only "
            "transformers knows; take them out"
        )


def _as_if(marker: re.Match[str]) -> str:
    begin, is_end, end = marker.groups()
    return f"{begin}endif{end}" if is_end else f"{begin}if true{end}"


def _probe(tokenizer: "PreTrainedTokenizerBase", name: str) -> list[Message]:
    """The probe, as much of it as the template takes: some know no system role.

    Raises:
        UsageError: it takes no conversation of user and assistant by turns.
    """
    turns = [Message(role=role, content=text) for role, text in PROBE]  # type: ignore[arg-type]
    for messages in (turns, turns[1:]):
        try:
            _render(tokenizer, messages)
            return messages
        except DataError as error:
            refusal = error
    raise UsageError(f"model {name}: {refusal}")


def _set_end_of_turn(tokenizer: "PreTrainedTokenizerBase", name: str, probe: Sequence[Message]) -> None:
    """Make the control token that follows every answer of the probe the EOS.

    Raises:
        UsageError: none follows every answer, or they differ.
    """
    control = _control_tokens(tokenizer)
    text = _render(tokenizer, probe).text
    ends = []
    for message in probe:
        if message.role == "assistant":
            words = message.content.strip()
            after = control.special.search(text, text.find(words) + len(words)) if words in text else None
            ends.append(after.group() if after else "")
    if len(set(ends)) > 1 or not ends[0]:
        raise UsageError(
            f"model {name}: its chat template ends the assistant's turns with "
            f"{', '.join(repr(end) if end else 'no control token' for end in ends)}, where one control token must end "
            "each of them; mend the template"
        )
    if tokenizer.eos_token != ends[0]:
        logger.info(f"model {name}: its answers end with {ends[0]!r}, which is its EOS from here on")
        tokenizer.eos_token = ends[0]


def _set_padding(
    tokenizer: "PreTrainedTokenizerBase", name: str, probe: Sequence[Message], add: bool
) -> None:
    """Make a control token that is there for padding, or for nothing, the padding token; or add one.

    Raises:
        UsageError: there is none to spare, and none may be added.
    """
    text = _render(tokenizer, probe).text
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = [each for each in _control_tokens(tokenizer).added if each not in taken and each not in text]
    for words in ("pad", "endoftext", "reserved|unused", "unk"):
        for each in free:
            if re.search(words, each, re.IGNORECASE):
                logger.info(f"model {name}: {each!r} is its padding token from here on")
                tokenizer.pad_token = each
                return
    if not add:
        raise UsageError(
            f"model {name}: its tokenizer has no padding token apart from the EOS {tokenizer.eos_token!r}, and no "
            "control token to spare; as `model` of a configuration, it gets one"
        )
    add_control_tokens(tokenizer, [PADDING])
    tokenizer.pad_token = PADDING


def add_control_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> None:
    """Make control tokens of these texts, each a token of its own; ids that are new need rows in the embeddings."""
    from tokenizers import AddedToken

    new: Any = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(new, special_tokens=True)
    _control_tokens.cache_clear()
    _can_be_cut.cache_clear()


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
    rendered = _render(tokenizer, messages)
    begins = []
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = _until_answer(tokenizer, rendered.text, messages[:i])
            if not rendered.text.startswith(prompt):
                raise DataError(_no_continuation(prompt, rendered.text))
            begins.append(len(prompt))
    if not begins:
        raise DataError("no turn of the conversation is the assistant's, so nothing can be learned from it")
    thought = {} if learns_thinking else _ends_of_thinking(rendered.text, messages, begins)
    tokens = _tokenize(tokenizer, rendered, [*begins, *thought.values()])
    mask = [0] * len(tokens.ids)
    end = 0
    said = [message for message in messages if message.role == "assistant"]
    for message, begin in zip(said, begins, strict=True):
        first = next((i for i, start in enumerate(tokens.starts) if start >= begin), len(tokens.ids))
        try:
            end = tokens.ids.index(tokenizer.eos_token_id, first) + 1
        except ValueError:
            raise DataError(
                f"the chat template does not end the assistant's turn {rendered.text[begin : begin + 60]!r} with the "
                f"eos_token {tokenizer.eos_token!r}"
            ) from None
        if message.weight != 0:
            learned = thought.get(begin, begin)
            first = next(i for i, start in enumerate(tokens.starts) if start >= learned)
            mask[first:end] = [1] * (end - first)
    return EncodedConversation(tokens.ids[:end], mask[:end])


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
    rendered = _render(tokenizer, prompt, add_generation_prompt=True)
    begins = []
    for i, message in enumerate(prompt):
        if message.role == "assistant":
            before = _until_answer(tokenizer, rendered.text, prompt[:i])
            begins += [len(before)] * rendered.text.startswith(before)
    return _tokenize(tokenizer, rendered, begins).ids


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool = False
) -> _Rendered:
    """What the template writes. Whatever looks like a control token in a message is covered while it does.

    Raises:
        DataError: the template refuses the conversation, or leaves a part of it out.
    """
    control = _control_tokens(tokenizer)
    dicts = messages_as_dicts(messages)
    tools = dicts[0].pop("tools", None) if dicts else None
    if dicts and not dicts[0]["content"] and not dicts[0].get("tool_calls"):
        del dicts[0]  # it was there for the tools
    covered: list[str] = []
    mark = _mark_for([dicts, tools])

    def cover(match: re.Match[str]) -> str:
        covered.append(match.group())
        return f"{mark}{len(covered) - 1}{mark}"

    def cover_all(value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, str):
            return pattern.sub(cover, value)
        if isinstance(value, list):
            return [cover_all(each, pattern) for each in value]
        if isinstance(value, dict):
            return {key: cover_all(each, pattern) for key, each in value.items()}
        return value

    dicts = [
        cover_all(each, control.special if each["role"] == "assistant" else control.any) for each in dicts
    ]
    tools = cover_all(tools, control.any)
    try:
        text = str(
            tokenizer.apply_chat_template(
                dicts, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:  # jinja2's TemplateError, or whatever Python raises inside a template
        raise DataError(_refusal(error, messages)) from None
    _check_nothing_is_left_out(text, dicts, tools)
    if not covered:
        return _Rendered(text)
    parts, literal, length = [], [], 0
    for i, part in enumerate(re.split(f"{mark}([0-9]+){mark}", text)):
        part = covered[int(part)] if i % 2 else part
        if i % 2:
            literal.append((length, length + len(part)))
        parts.append(part)
        length += len(part)
    return _Rendered("".join(parts), literal)


def _refusal(error: Exception, messages: Sequence[Message]) -> str:
    said = " ".join(str(error).split())
    way = ""
    if any(message.role == "system" for message in messages):
        way = "; if it has no system role, set data.system: merge_into_user"
    return f"the model's chat template refuses this conversation: {said}{way}"


def _check_nothing_is_left_out(text: str, messages: Sequence[dict[str, Any]], tools: Any) -> None:
    """Refuse a template that drops what it has no form for, as many do without a word.

    Thinking parts of all but the last answer are an exception: many templates leave them out by design.

    Raises:
        DataError: with what it leaves out.
    """

    def end_of(words: Any, begin: int = 0) -> int | None:
        """Where the words end that the template wrote first behind a place, as they are or as JSON has them."""
        words = str(words).strip()
        forms = (words, json.dumps(words, ensure_ascii=False)[1:-1])
        ends = [at + len(form) for form in forms if (at := text.find(form, begin)) >= 0]
        return min(ends, default=None)

    for tool in tools or []:
        if end_of(name := tool.get("function", tool).get("name", "")) is None:
            raise DataError(
                f"the model's chat template leaves out the tools (of which one is '{name}'); use a model whose "
                "template knows them, or take the column tools away"
            )
    at = 0
    for i, message in enumerate(messages):
        if message["role"] == "system":  # some templates write it before the last question
            if end_of(message["content"]) is None:
                raise DataError("the model's chat template leaves out what the system message says")
            continue
        for call in message.get("tool_calls", []):
            if end_of(name := call["function"]["name"], at) is None:
                raise DataError(
                    f"the model's chat template leaves out calls of tools (messages.{i} calls '{name}'); use a model "
                    "whose template knows them, or leave such rows out"
                )
        end = end_of(message["content"], at)
        if end is None:
            raise DataError(
                f"the model's chat template leaves out what messages.{i} says ({message['role']}: "
                f"{message['content'][:40]!r})"
            )
        at = end
    thought = messages[-1].get("reasoning_content") if messages else None
    if thought and end_of(thought) is None:
        raise DataError(
            "the model's chat template leaves out the thinking part (reasoning_content) of the last answer; set "
            "sft.thinking: cut, or use a model whose template knows it"
        )


def _until_answer(tokenizer: "PreTrainedTokenizerBase", conversation: str, before: Sequence[Message]) -> str:
    """What the template writes before an answer; of a conversation that begins with one, what opens a turn."""
    if before:
        return _render(tokenizer, before, add_generation_prompt=True).text
    asked = [Message(role="user", content="?")]
    opening = _render(tokenizer, asked, add_generation_prompt=True).text[
        len(_render(tokenizer, asked).text) :
    ]
    return conversation[: conversation.find(opening) + len(opening)] if opening in conversation else opening


def _mark_for(conversation: Any) -> str:
    """A character of the private use area that a conversation does not hold."""
    said = json.dumps(conversation, ensure_ascii=False)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in said)


@dataclass(frozen=True)
class _ControlTokens:
    """A tokenizer's control tokens: as patterns that find them in texts, and their ids."""

    special: re.Pattern[str]
    """Those that are marked special."""
    any: re.Pattern[str]
    """Those, and others that are written like marks, as <tool_call> is: a model may write them, nobody else."""
    added: dict[str, Any]
    """By its text, each special token's id and whether it takes white space before and behind it: (id, left, right)."""


@functools.lru_cache(maxsize=16)
def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> _ControlTokens:
    added = {str(token.content): (id_, token) for id_, token in tokenizer.added_tokens_decoder.items()}
    special = {
        text: (id_, token.lstrip, token.rstrip)
        for text, (id_, token) in added.items()
        if text and (token.special or text in tokenizer.all_special_tokens)
    }
    marks = [text for text in added if re.fullmatch(r"<[^<>\s]+>|\[[^\[\]\s]+\]", text)]

    def pattern(texts: Sequence[str]) -> re.Pattern[str]:
        return re.compile(
            "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)"
        )

    return _ControlTokens(pattern(list(special)), pattern([*special, *marks]), special)


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase", rendered: _Rendered, begins: Sequence[int] = ()
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
    if begins and _joins_answers(tokenizer):
        cuts = sorted(begins)
    if not rendered.literal and not cuts:
        return tokens
    if not _can_be_cut(tokenizer, anywhere=bool(cuts)):
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
    tokenizer: "PreTrainedTokenizerBase", rendered: _Rendered, cuts: Sequence[int] = ()
) -> _Tokens:
    """The same, of the text between control tokens and cuts, part by part."""
    added = _control_tokens(tokenizer).added
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
    for match in _control_tokens(tokenizer).special.finditer(rendered.text):
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
def _joins_answers(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether an answer behind it changes the tokens at the end of a prompt, as words do with two line breaks."""
    asked = [Message(role="user", content="Say it.")]
    prompt = _render(tokenizer, asked, add_generation_prompt=True).text
    whole = _render(tokenizer, [*asked, *answer("It.")]).text
    before, behind = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, whole)
    )
    return whole.startswith(prompt) and behind[: len(before)] != before


@functools.lru_cache(maxsize=16)
def _can_be_cut(tokenizer: "PreTrainedTokenizerBase", anywhere: bool) -> bool:
    """Whether parts of a text have the tokens that they have in the whole: cut at control tokens, or `anywhere` at all.

    Many tokenizers that were made with sentencepiece put a blank before whatever they are given.
    """
    messages = [Message(role="user", content="Say  it: [twice]."), *answer("It, it. \n\n1. É!")]
    rendered = _render(tokenizer, messages)
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
