"""Which characters no intent and no text may hold, and how to show a text that holds one.

HTML, Markdown, SQL or an order to the teacher are words like others: they do no harm where they are shown and used. Refused is
what acts on a machine or hides from people: control characters, marks that reverse what is read, invisible ones, and the control
tokens of chat models and of the students.
"""

import json
import re
import reprlib
import unicodedata
from typing import Any

#: What the students' control tokens look like, and those with which chat models end a turn or begin one.
CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")

# Cc without the tab, Cs, Co, and the code points that are no characters
_CONTROL = "\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\U000f0000-\U0010ffff" + "".join(
    chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(15)
)
_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\u2800\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
_JOINERS, _SELECTORS = "\u200c\u200d", "\ufe00-\ufe0f\U000e0100-\U000e01ef"
# A joiner has a use after a visible character of a script that joins, or an emoji, such as in 👨‍👩‍👧; a selector also after the digits
# and signs of keycaps. One after another, or after a Latin letter, they only hide something.
_UNSEEN = rf"\s{_JOINERS}{_CONTROL}{_BIDIRECTIONAL}{_INVISIBLE}"
_LONE_JOINER = rf"(?<![^\x00-\x7f{_UNSEEN}])[{_JOINERS}]"
_LONE_SELECTOR = rf"(?<![^\x00-\x22\x24-\x29\x2b-\x2f\x3a-\x7f{_SELECTORS}{_UNSEEN}])[{_SELECTORS}]"

REASONS = {
    "control characters": re.compile(f"[{_CONTROL}]"),
    "bidirectional control": re.compile(f"[{_BIDIRECTIONAL}]"),
    "invisible characters": re.compile(f"[{_INVISIBLE}]|{_LONE_JOINER}|{_LONE_SELECTOR}"),
}
#: A character that a terminal would obey, or a reader not see.
HIDDEN = re.compile("|".join(reason.pattern for reason in REASONS.values()))
_BOUNDED = reprlib.Repr()
_BOUNDED.maxstring = _BOUNDED.maxother = _BOUNDED.maxlong = 200


def fault(text: str) -> str | None:
    """Why nobody may write this text, or None."""
    if text.isascii() and text.isprintable() and "<" not in text and "[" not in text:
        return None  # nearly every text, and told in a tenth of the time
    for reason, pattern in REASONS.items():
        if pattern.search(text):
            return reason
    return "control token" if CONTROL_TOKEN.search(unicodedata.normalize("NFKC", text)) else None


def printable(text: str) -> str:
    """A text in one line that shows what it hides, as \\x1b or \\u202e, and can be written anywhere."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def quoted(value: object, limit: int = 200) -> str:
    """Any value as Python writes it, for people: printable, in one line, at most `limit` characters."""
    return printable((repr(value[:limit]) if isinstance(value, str) else _BOUNDED.repr(value))[:limit])


def to_json(value: Any) -> str:
    """JSON in one line, letters of any script as they are, what is hidden as \\u202e."""
    return HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False))
