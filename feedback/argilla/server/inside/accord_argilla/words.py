"""Text as Elasticsearch's standard analyser sees it: words after Unicode's UAX #29, in lower case.

    words_of("Don't pay 1,000 at example.com: 日本!")   # ["don't", "pay", "1,000", "at", "example.com", "日", "本"]

Letters and digits join; so do they across an apostrophe or a full stop between letters (`e.g`), and a comma or full
stop between digits. Each Han or Hiragana character is a word of its own. https://www.unicode.org/reports/tr29/
"""

import json
import re
import unicodedata

LONGEST_WORD = 255  # characters; longer ones are cut into pieces, as Lucene does

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u32d0-\u32fe\u3300-\u3357\uff66-\uff9f"
_SOUTH_EAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0edf\u1000-\u109f\u1780-\u17df\u1950-\u19df\ua9e0-\ua9fe\uaa60-\uaadf"
)
_PICTURES = "\u231a\u231b\u23e9-\u23f3\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001f1e5\U0001f200-\U0001faff"
_FLAG = "\U0001f1e6-\U0001f1ff"


_ALONE = _HAN + _HIRAGANA + _KATAKANA + _SOUTH_EAST_ASIAN  # letters that do not join others


def _word_pattern(codes: int) -> re.Pattern[str]:
    """A word of text whose code points are all below `codes`: fewer make it faster, by a factor of ten."""
    alone = re.compile(f"[{_ALONE}]")

    def characters(*categories: str) -> str:
        ranges: list[list[int]] = []
        for code in range(codes):
            if unicodedata.category(chr(code)) in categories and not alone.match(chr(code)):
                if ranges and ranges[-1][1] == code - 1:
                    ranges[-1][1] = code
                else:
                    ranges.append([code, code])
        return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)

    letter, joiner = characters("Lu", "Ll", "Lt", "Lm", "Lo", "Nl"), characters("Pc")
    mark = characters("Mn", "Mc", "Me", "Cf")
    return re.compile(
        rf"(?=[{joiner}{mark}]*[{letter}\d])"
        rf"(?:[{letter}][{letter}{mark}]*(?:[.:'·‘’․‧︓﹒﹕＇．：][{mark}]*(?=[{letter}]))?"
        rf"|\d[\d{mark}]*(?:[.,;'‘’․﹒＇．\u037e\u0589\u060c\u060d\u066c\u07f8\u2044︐︔﹐﹔，；][{mark}]*(?=\d))?"
        rf"|[{joiner}][{joiner}{mark}]*)+"
        rf"|[{_HAN}{_HIRAGANA}][{mark}]*"
        rf"|[{_KATAKANA}][{_KATAKANA}{mark}]*"
        rf"|[{_SOUTH_EAST_ASIAN}]+"
        rf"|[{_FLAG}]{{2}}|[{_PICTURES}][{mark}]*(?:(?<=\u200d)[{_PICTURES}][{mark}]*)*"
    )


_WORD = _word_pattern(0x20000)
_WORD_OF_FIRST_PLANE = _word_pattern(0x10000)
_ASCII_WORD = re.compile(
    r"(?=_*[a-z0-9])[a-z0-9_]+(?:(?:(?<=[a-z])[.:'](?=[a-z])|(?<=[0-9])[.,;'](?=[0-9]))[a-z0-9_]+)*"
)
_LOWER = str.maketrans({"\u03a3": "\u03c3", "\u0130": "i"})  # Java's lower case looks at one letter at a time


def words_of(text: str) -> list[str]:
    """The words of `text` in their order."""
    if text.isascii():
        found = _ASCII_WORD.findall(text.lower())
    else:
        pattern = _WORD if max(text) > "\uffff" else _WORD_OF_FIRST_PLANE
        found = pattern.findall(text.translate(_LOWER).lower())
    if all(len(word) <= LONGEST_WORD for word in found):
        return found
    return [word[i : i + LONGEST_WORD] for word in found for i in range(0, len(word), LONGEST_WORD)]


def keyword(text: str) -> str:
    """`text` as one word that is told from all words of a text, and whose beginning stays its beginning.

    A chat message's role is searched as it stands: whole, and with its capitals.
    """
    return "=" + text.encode().hex()


def indexed_words(field_type: str, value: str) -> str:
    """What the index keeps of a record's field: its words between spaces.

    Args:
        field_type: Argilla's type of the field: text, chat or custom.
        value: the text, or the JSON of a list of messages or of a custom field's mapping.
    """
    if field_type == "chat":
        found = []
        for message in json.loads(value):
            found += [keyword(message["role"]), *words_of(message["content"])]
        return " ".join(found)
    return " ".join(words_of(str(json.loads(value)) if field_type == "custom" else value))
