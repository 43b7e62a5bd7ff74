"""Personal data and secrets in texts: found by their form and, where they have one, by their checksum.

for span in find_personal("Write to ada@example.org"): span.kind, span.start, span.end     # email 9 24

Found are e-mail addresses; phone numbers that are valid (phonenumbers), written with +country or in the grouping of
North America: other national numbers cannot be told from other figures; card numbers of the known issuers by Luhn's
checksum; account numbers (IBAN) by theirs and their country's form; public IP addresses; keys and tokens by the
prefixes that their issuers gave them. Names, streets and dates of birth are not found.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from accord.data.quality.findings import Finding, needed, strings
from accord.records import Row

PLACEHOLDERS = {
    "secret": "<SECRET>", "email": "<EMAIL>", "iban": "<IBAN>", "card": "<CARD>", "phone": "<PHONE>", "ip": "<IP>",
}  # fmt: skip
"""By kind, in the order in which they are looked for: what an earlier one found is no other's."""

_FILES = r"(?!png|jpe?g|gif|svg|webp|pdf|js|css|py)"
_EMAIL = re.compile(
    rf"(?<![\w.%+'-])[\w%+-]+(?:[.'][\w%+-]+)*@(?:[^\W_](?:[\w-]{{0,61}}[^\W_])?\.)+{_FILES}[^\W\d_]{{2,24}}(?![\w@-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|\.\d)"
)
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[689]\d)\d{11}|(?:6011|65\d\d|64[4-9]\d|62\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12,15}"
)
"""Visa, Mastercard, American Express, Diners, Discover, UnionPay, JCB: their first digits and lengths."""
_ABROAD = re.compile(r"[+\uff0b][ (]?\d[\d ().\-/]{5}")
_AMERICAN = re.compile(
    r"(?<![\w.+-])(?:\+?1[ .-]?)?(?:\(\d{3}\) ?\d{3}-\d{4}|\d{3}([ .-])\d{3}\1\d{4})(?![\w-]|\.\d)"
)
_V4 = re.compile(r"(?<![\w.§-])\d{1,3}(?:\.\d{1,3}){2}\.(?!0\b)\d{1,3}(?![\w-]|\.\d)")
_VERSION = re.compile(r"(?:version|release|§|[<>=~!]=|[<>])[\s\"':=(]*$", re.IGNORECASE)
"""Before what looks like an address."""
_V6 = re.compile(r"(?<![\w:.])[23][0-9a-fA-F]{3}:[0-9a-fA-F:]{2,35}(?![\w:])")
_SECRET = re.compile(
    "|".join(
        (
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[\s\S]*?-----END [A-Z0-9 ]+-----)?",
            r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",  # AWS
            r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{82}\b",
            r"\bglpat-[A-Za-z0-9_-]{20,}",  # GitLab
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|\bxapp-\d-[A-Za-z0-9-]{10,}",  # Slack
            r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}\b",  # Stripe
            r"\bsk-(?=[A-Za-z0-9_-]*\d)(?:proj-|svcacct-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{32,}",  # OpenAI, Anthropic
            r"\bhf_[A-Za-z]{34}\b",  # Hugging Face
            r"\bAIza[A-Za-z0-9_-]{35}(?![\w-])",  # Google
            r"\bnpm_[A-Za-z0-9]{36}\b|\bpypi-AgE[A-Za-z0-9_-]{50,}",
            r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",  # JSON Web Tokens (RFC 7519)
        )
    )
)
"""As the issuers document their tokens, and as gitleaks' rules (https://github.com/gitleaks/gitleaks) have them."""
_SECRETS_HOLD = (
    "-----BEGIN ", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-",
    "k_live_", "k_test_", "sk-", "hf_", "AIza", "npm_", "pypi-AgE", "eyJ",
)  # fmt: skip
"""One of these each: most texts hold none, and are looked through in a fraction of the time."""
_FOUR_DIGITS, _THREE_NUMBERS = re.compile(r"\d{4}"), re.compile(r"\d\.\d{1,3}\.\d")
"""Without these a text holds no card, and no address of version 4."""
_SEVEN_DIGITS = re.compile(r"(?:\d\D{0,3}){6}\d")


@dataclass(frozen=True)
class Span:
    """Where something stands in a text."""

    kind: str
    start: int
    end: int


def find_personal(text: str) -> list[Span]:
    """All personal data and secrets of a text in order, none over another."""
    found: list[Span] = []
    taken: list[tuple[int, int]] = []
    for kind, search in _SEARCHES.items():
        for start, end in search(text):
            if all(end <= a or b <= start for a, b in taken):
                taken.append((start, end))
                found.append(Span(kind, start, end))
    return sorted(found, key=lambda span: span.start)


def personal_data(rows: Sequence[Row]) -> list[Finding]:
    """One finding for every row and kind, counting; what was found is shown by its first two characters only."""
    found = []
    for i, row in enumerate(rows):
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        for text in strings(row):
            for span in find_personal(text):
                counts[span.kind] += 1
                first.setdefault(span.kind, text[span.start : span.start + 2] + "…")
        found += [
            Finding(kind, i, f"{first[kind]}" + (f" and {count - 1} more" if count > 1 else ""))
            for kind, count in counts.items()
        ]
    return found


def redacted(text: str, kinds: Sequence[str]) -> str:
    """A text with `<EMAIL>` and the like for what is of these kinds."""
    for span in reversed(find_personal(text)):
        if span.kind in kinds:
            text = text[: span.start] + PLACEHOLDERS[span.kind] + text[span.end :]
    return text


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    if any(each in text for each in _SECRETS_HOLD):
        yield from (match.span() for match in _SECRET.finditer(text))


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        iban = needed("stdnum.iban", "python-stdnum")
        written = match.group()
        for length in range(len(written), 14, -1):  # words in capitals may follow
            at_end = length == len(written) or not written[length].isalnum()
            if at_end and iban.is_valid(written[:length]):
                yield match.start(), match.start() + length
                break


def _cards(text: str) -> Iterator[tuple[int, int]]:
    if not _FOUR_DIGITS.search(text):
        return
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if _ISSUERS.fullmatch(digits) and needed("stdnum.luhn", "python-stdnum").is_valid(digits):
            yield match.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    if not _SEVEN_DIGITS.search(text):
        return
    phonenumbers = needed("phonenumbers", "phonenumbers")
    if _ABROAD.search(text):
        for match in phonenumbers.PhoneNumberMatcher(text, None):
            yield match.start, match.end
    for written in _AMERICAN.finditer(text):
        if phonenumbers.is_valid_number(phonenumbers.parse(written.group(), "US")):
            yield written.span()


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    v6 = _V6.finditer(text) if "::" in text or text.count(":") > 6 else ()
    v4 = _V4.finditer(text) if _THREE_NUMBERS.search(text) else ()
    for match in [*v4, *v6]:
        if _VERSION.search(text[max(0, match.start() - 12) : match.start()]):
            continue
        try:
            address = ipaddress.ip_address(match.group())
        except ValueError:
            continue
        if address.is_global and not address.is_multicast:
            yield match.span()


_SEARCHES = {
    "secret": _secrets, "email": _emails, "iban": _ibans, "card": _cards, "phone": _phones, "ip": _addresses,
}  # fmt: skip
