from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from accord import bundled
from accord.chat import answer, decode_response, encode_conversation, encode_prompt, prepare_tokenizer
from accord.errors import UsageError
from accord.models import Model, load_tokenizer
from accord.records import Demonstration, Message, messages_as_dicts, read_jsonl
from sft.data import encode_demonstrations

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Model) -> PreTrainedTokenizerBase:
    return load_tokenizer(bundled_model)


@pytest.fixture(scope="module")
def conversations() -> list[Demonstration]:
    """Twenty shipped demonstrations: as many as possible with several turns or a system message, then plain ones."""
    rows = read_jsonl(bundled.data_path("bundled:demo/demonstrations.train.jsonl"), Demonstration)
    several_turns = [row for row in rows if len(row.messages) > 3]
    system = [row for row in rows if row.messages[0].role == "system" and row not in several_turns]
    plain = [row for row in rows if row not in several_turns and row not in system]
    chosen = [*several_turns[:7], *system[:7]]
    chosen += plain[: 20 - len(chosen)]
    assert several_turns
    assert system
    assert len(chosen) == 20
    return chosen


def turns(row: Demonstration) -> list[str]:
    return [message.content + "<|im_end|>" for message in row.messages if message.role == "assistant"]


def test_the_labels_are_exactly_the_assistants_turns_with_their_eos(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Demonstration]
) -> None:
    dataset, too_long = encode_demonstrations(tokenizer, conversations, 4096)
    assert too_long == 0
    for row, encoded in zip(conversations, dataset, strict=True):
        trained = [label for label in encoded["labels"] if label != -100]
        assert tokenizer.decode(trained) == "".join(turns(row))
        assert [label for label in encoded["labels"] if label not in (-100, *encoded["input_ids"])] == []
        # and turn by turn: each run of labels is one turn
        spans: list[list[int]] = [[]]
        for label in encoded["labels"]:
            if label != -100:
                spans[-1].append(label)
            elif spans[-1]:
                spans.append([])
        assert [tokenizer.decode(span) for span in spans if span] == turns(row)


def test_a_conversation_is_its_text(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Demonstration]
) -> None:
    """The ids, decoded, are the text that SmolLM2's format prescribes, written out here by hand."""
    for row in conversations:
        messages = list(row.messages)
        if messages[0].role != "system":
            messages.insert(0, Message(role="system", content=DEFAULT_SYSTEM))
        text = "\n".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>" for message in messages)
        encoded = encode_conversation(tokenizer, row.messages)
        assert tokenizer.decode(encoded.input_ids) == text
        assert encoded.input_ids == tokenizer(text)["input_ids"]
        assert encoded.input_ids[-1] == tokenizer.eos_token_id
        assert len(encoded.assistant_mask) == len(encoded.input_ids)


def test_every_prompt_is_a_prefix_of_its_conversation(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Demonstration]
) -> None:
    for row in conversations:
        whole = encode_conversation(tokenizer, row.messages)
        for i, message in enumerate(row.messages):
            if message.role != "assistant":
                continue
            prompt = encode_prompt(tokenizer, row.messages[:i])
            assert whole.input_ids[: len(prompt)] == prompt
            assert whole.assistant_mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]
            until = encode_conversation(tokenizer, row.messages[: i + 1]).input_ids
            assert whole.input_ids[: len(until)] == until
            assert decode_response(tokenizer, until[len(prompt) :]) == message.content.strip()


def test_the_text_is_that_of_the_template_inside_the_gguf(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Demonstration]
) -> None:
    from gguf import GGUFReader

    field = GGUFReader(bundled._gguf_file()).get_field("tokenizer.chat_template")
    assert field is not None
    original = str(field.contents())
    assert "generation %}" not in original  # else ours would not be needed
    for row in conversations:
        whole = messages_as_dicts(row.messages)
        theirs = tokenizer.apply_chat_template(whole, chat_template=original, tokenize=False)
        ours = tokenizer.apply_chat_template(whole, tokenize=False)
        assert theirs == ours + "\n"
        for prompt in (whole[:-1], whole):
            theirs, ours = (
                tokenizer.apply_chat_template(
                    prompt, chat_template=template, tokenize=False, add_generation_prompt=True
                )
                for template in (original, None)
            )
            assert theirs == ours


def test_digits_are_single_tokens_and_special_tokens_differ(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("\n\n1.") == ["ĊĊ", "1", "."]
    assert tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 8192


def test_saving_and_loading_keeps_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Demonstration], tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path), "again")
    assert again.tokenize("\n\n1.") == ["ĊĊ", "1", "."]
    for row in conversations:
        assert encode_conversation(again, row.messages) == encode_conversation(tokenizer, row.messages)


# --- what is refused, and what is mended


def changed(tiny_model: Model, **attributes: object) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model.folder)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"chat_template": None}, "has no chat template; put a chat_template.jinja"),
        (
            {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
            "has no {% generation %} markers",
        ),
        ({"pad_token": "<|im_end|>"}, "needs a pad_token apart from the eos_token '<|im_end|>'"),
        ({"pad_token": None}, "needs a pad_token"),
        ({"eos_token": None}, "has no eos_token"),
        (
            {"eos_token": "<|im_start|>"},
            "does not end the assistant's turn with the eos_token '<|im_start|>'",
        ),
    ],
)
def test_a_tokenizer_that_would_train_wrongly_is_refused(
    tiny_model: Model, attributes: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        prepare_tokenizer(changed(tiny_model, **attributes), "mine")
    assert str(caught.value).startswith("model mine")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_trl_knows_is_given_its_markers(tiny_model: Model) -> None:
    """Qwen's template has no markers, and TRL's marked version teaches a line break after EOS, which we cut off."""
    from trl.chat_template_utils import qwen2_5_chat_template

    assert "generation" not in qwen2_5_chat_template.replace("add_generation_prompt", "")
    tokenizer = prepare_tokenizer(changed(tiny_model, chat_template=qwen2_5_chat_template), "qwen")
    conversation = [
        Message(role="user", content="Hello"),
        *answer("Yes"),
        Message(role="user", content="Bye"),
        *answer("No"),
    ]
    encoded = encode_conversation(tokenizer, conversation)
    text = tokenizer.decode(encoded.input_ids)
    assert text.endswith("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>")
    said = [i if m else 0 for i, m in zip(encoded.input_ids, encoded.assistant_mask, strict=True)]
    # TRL's marked template counts the line break before a turn to the turn.
    assert tokenizer.decode([i for i in said if i]) == "\nYes<|im_end|>\nNo<|im_end|>"
    prompt = encode_prompt(tokenizer, conversation[:-1])
    assert encoded.input_ids[: len(prompt)] == prompt
