"""The rules of the Penn Treebank lexer (CoreNLP 3.4.1), in order: what a token is, what it looks ahead at, what it becomes."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from simvlm_jax.eval.metrics.ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS


def _class(*tables: str, more: str = "") -> str:
    """The inside of a character class of tables of ranges."""
    parts = [p for table in tables for p in table.split()]
    return "".join("-".join(re.escape(chr(int(c, 16))) for c in p.split("-")) for p in parts) + more


_L = _class(LETTERS)
_W = _class(LETTERS, MARKS, more="\u00ad")
_D = _class(DIGITS)
_LETTER = rf"(?:[{_W}]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_WORD_CHARACTER = rf"(?:[{_W}{_D}]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_WORD = rf"{_LETTER}{_WORD_CHARACTER}*(?:[.!?]{_LETTER}{_WORD_CHARACTER}*)*"
_APOS = r"(?:['\x92\u2019]|(?i:&apos;))"
_TICK = r"(?:['\x92\u2019`\x91\u2018\u201b]|(?i:&apos;))"
_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_ANY_SPACE = r"[ \t\xa0\u2000-\u200a\u3000\n]"
_ALNUM = rf"[{_L}{_D}]"
_AUX = rf"(?:{_APOS}(?:[msdMSD]|(?i:re|ve|ll)))"
_NOT = rf"(?i:n{_TICK}t)"
_ELIDED = rf"(?:[dDoOlL]{_TICK}{_ALNUM})?"
_HYPHENATED = rf"{_ELIDED}{_ALNUM}+(?:[-_\u058a\u2010\u2011]{_ELIDED}{_ALNUM}+)*"
_PAUSE = r"[,;:\u3001]"
_STATES = r"(?:(?i:Canada|Sino|Korean|EU|Japan|non)-(?i:U\.S)|(?i:U\.S\.-)(?i:U\.S\.S\.R|U\.K))"
_INITIALS = rf"(?:{_STATES}|[A-Za-z](?:\.[A-Za-z])*)"
_SEVERAL_INITIALS = rf"(?:{_STATES}|[A-Za-z](?:\.[A-Za-z])+)"
_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_SEVERAL_INITIALS}\.|[A-Za-z0-9\xad]+))+"
_CAPITALS = r"[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_VALUE = r"""(?:'[^']*'|"[^"]*")"""
_DECLARATION = r"<[!?][A-Za-z\-][^>\r\n]*>"
_ELEMENT = (
    r"<(?:/[A-Za-z][A-Za-z0-9_:.\-]*"
    rf"|[A-Za-z][A-Za-z0-9_:.\-]*(?: +[A-Za-z][A-Za-z0-9_:.\-]*(?: *= *{_VALUE})?)*(?: */)?) *>"
)

# Abbreviations of the Wall Street Journal of 1987; letters in brackets are of that case, all others of either.
_BEFORE_LOWER = r"""
Jan Feb Mar Apr Jun Jul Aug Sept Sep Oct Nov Dec Mon Tues Tue Wed Thurs Thu Fri
Ala Ariz [A]z [A]rk Calif Colo Conn Ct Dak [D]el Fla Ga [I]ll Ind Kans? Ky [L]a [M]ass Md Mich Minn [M]iss Mo Mont Neb Nev Okla
[O]re [P]a Penn Tenn [T]ex Va Vt [W]ash Wisc? Wyo Inc Cos? Corp Pp?t[ye]s? Ltd Plc Rt Bancorp Bhd Assn Univ Intl Sys
tel est ext sq Jr Sr Bros Ed\.D Ph\.D Blvd Rd Esq etc al seq Bldg
"""
_BEFORE_CAPITAL = r"""
Mrs Mr Ms [M]iss Drs? Profs? Sens? Reps? Attys? Lt Col Gen Messrs Govs? Adm Rev Maj Sgt Cpl Pvt Capt Ste? Ave Pres Lieut Hon
Brig Co?mdr Pfc Spc Supts? Det Mt Ft Adj Adv Asst Assoc Ens Insp Mlle Mme Msgr Sfc
vs Alex Wm Jos Cie a\.k\.a cf TREAS Ph Invt Elec Natl M[ft]g Dept
"""
_BEFORE_NUMBER = "ca figs? prop nos? art bldg pp op"
_AFTER_INITIALS = r"""
[A]bout [A]ccording [A]dditionally [A]fter [A]n [A]s [A]t [A] [B]ut [E]arlier [H]ere [H]er [H]e [H]owever [I]f [I]n [I]t
[L]ast [M]any [M]ore [M]r\. [M]s\. [N]ow [O]nce [O]ne [O]ther [O]ur [S]he [S]ince [S]ome [S]o [S]uch [T]hat [T]heir [T]hen
[T]here [T]hese [T]hey [T]he [T]his [W]e [W]hen [W]hile [W]hat [Y]et [Y]ou
"""
_EXTENSIONS = (
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar txt wav x"
    " xml zip"
)


def _any_of(words: str) -> str:
    """A regex of words, whose letters match in either case but for those in brackets."""
    parts = [re.split(r"(\[\w+\])", word) for word in words.split()]
    return "(?:" + "|".join("".join(p if p[:1] == "[" else f"(?i:{p})" for p in word if p) for word in parts) + ")"


_LOWER, _CAPITAL = _any_of(_BEFORE_LOWER), _any_of(_BEFORE_CAPITAL)
PERIOD_MATTERS = re.compile(
    rf"(?:{_LOWER}|{_CAPITAL}|{_any_of(_BEFORE_NUMBER)}|{_any_of('pt[eyEY] co')}|{_INITIALS})\.+$"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Within:
    """What stands in every match of a rule before anything that breaks it off; both from so many characters on."""

    sought: re.Pattern[str]
    breaks: re.Pattern[str]
    start: int = 0


class Rule(NamedTuple):
    """What a match becomes. before: the end of the token, where the pattern goes on to what it looks ahead at (group 1)."""

    pattern: re.Pattern[str]
    make: Callable[[str], str | None]
    cut: int = 0
    """How many characters of the match are read again."""
    needs: Within | None = None
    """Where that does not come, the rule is not tried."""


def as_is(text: str) -> str:
    return text


def _without_hyphens(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _no_breaks(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _ampersand(text: str) -> str:
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


def _brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _dropped(text: str) -> None:
    return None


def _says(what: str) -> Callable[[str], str]:
    return lambda text: what


_CURLY = {"`": "\x91\u2018\u201b\u2039", "'": "\x92\u2019\u203a", "``": "\x93\u201c\xab", "''": "\x94\u201d\xbb"}
_QUOTES = {c: latex for latex, all_of in _CURLY.items() for c in all_of}


def _quote(text: str, left: bool = False) -> str:
    """Quotes in LaTeX's spelling."""
    text = re.sub("&apos;|'", "`" if left else "'", text)
    text = re.sub('"|&quot;', "``" if left else "''", text)
    return "".join(_QUOTES.get(c, c) for c in text)


def _left_quote(text: str) -> str:
    return _quote(text, left=True)


_MONEY = {"\xa2": "cents", "\xa3": "#", "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}
_PARTS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_URL_END = r"""[^ \t\n\f\r"<>|.!?(){},\-]"""
_PATH = rf"""/[^ \t\n\f\r"<>|()]+{_URL_END}"""
_ADDRESS, _HOST = r"""[^ \t\n\f\r"<>|()\xa0{}]""", r"""[^ \t\n\f\r"<>|()\xa0{}.]"""
_EXTENSION = rf"\.{_any_of(_EXTENSIONS)}(?:{_ANY_SPACE}|[.?!,])"
_CLOSED = Within(re.compile(">"), re.compile("[\r\n]"))
_WEB = Within(re.compile(r"\.[a-zA-Z]{2}"), re.compile(r"""[ \t\n\f\r"<>|!?(){},]|\.\."""), 4)
_SITE = Within(re.compile(r"\.(?i:com|net|org|edu)"), re.compile(r"""[ \t\n\f\r"`'<>|!?(){},\-/-_$]|\.\."""))
_MAIL = Within(re.compile(f"@{_HOST}"), re.compile(r"""[ \t\n\f\r"<>|()\xa0{}]"""), 1)
_FILE = Within(re.compile(_EXTENSION), re.compile(rf"[^{_W}{_D}.]|\.\."))
_JOINED = Within(re.compile(r"-[A-Za-z0-9\xad]"), re.compile(r"[^A-Za-z0-9.,\xad\-]"))
_NUMBER = rf"(?:[{_D}]*(?:[.:,\xad\u066b\u066c][{_D}]+)+|[{_D}]+)"
_EYES, _FACE = r"[\-^x=~<>']", r"[\^x=~<>']"


def _rules() -> list[Rule]:
    """The rules in order: (pattern of the token), then what it looks ahead at."""
    letter = rf"[{_L}]"
    given: list[tuple[Any, ...]] = [
        (r"((?i:c\+\+))", as_is),
        (r"((?i:[cf]\#))", as_is),
        (r"((?i:cannot))", as_is, 3),
        (r"((?i:'twas))", as_is, 3),
        (r"((?i:'tis))", as_is, 2),
        (r"((?i:gonna|gotta|lemme|gimme|wanna))", as_is, 2),
        (rf"({_DECLARATION})", _no_breaks, 0, _CLOSED),
        (rf"({_ELEMENT})", _no_breaks),
        (r"((?i:&(?:MD|mdash|ndash);)|[\x96\x97\u2013\u2014\u2015])", _says("--")),
        (r"((?i:&amp;))", _ampersand),
        (r"(&(?i:HT|TL|UR|LR|QC|QL|QR|odq|cdq|\#[0-9]+);)", as_is),
        (rf"({_WORD}){_AUX}", _without_hyphens),
        (rf"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*){_NOT}", _without_hyphens),
        (rf"({_WORD})", _without_hyphens),
        *((rf"({pattern})", as_is) for pattern in (
            rf"{_APOS}(?i:n){_APOS}?", rf"[lLdDjJ]{_APOS}", rf"(?i:Dunkin|somethin|ol){_APOS}", rf"{_APOS}(?i:em)",
            rf"[A-HJ-XZn]{_TICK}{letter}{{2,}}", rf"{_APOS}[2-9](?i:0s)", rf"{_APOS}(?i:till?)",
            rf"{letter}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{letter}*", rf"{_APOS}(?i:cause)",
            r"(?i:cont'd\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)", rf"(?i:O){_TICK}(?i:o)",
        )),
        (rf"((?i:y){_APOS}){letter}", as_is),
        (rf"""((?i:https?)://[^ \t\n\f\r"<>|()\{{\}}]+{_URL_END})""", as_is),
        *((rf"""({site}{path})""", as_is, 0, needs) for path in ("", _PATH) for site, needs in (
            (r"""(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}""", _WEB),
            (r"""(?:[^ \t\n\f\r"`'<>|.!?(){},-_$]+\.)+(?i:com|net|org|edu)""", _SITE),
        )),
        (rf"((?:(?i:&lt;)|<)?[a-zA-Z0-9]{_ADDRESS}*@(?:{_HOST}+\.)*{_HOST}+(?:(?i:&gt;)|>)?)", as_is, 0, _MAIL),
        (rf"(@[a-zA-Z_][a-zA-Z_0-9]*|\#{_LETTER}+)", as_is),
        (rf"({_AUX})[^A-Za-z]", _quote),
        (rf"({_NOT})[^A-Za-z]", _quote),
        (rf"([{_D}]{{1,2}}[\-/][{_D}]{{1,2}}[\-/][{_D}]{{2,4}})", as_is),
        (rf"([\-+]?{_NUMBER})", _without_hyphens),
        (r"([\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+))", as_is),
        (rf"((?:[{_D}]{{1,4}}[\- \xa0])?[{_D}]{{1,4}}(?:\\?/|\u2044)[{_D}]{{1,4}})", _no_breaks),
        (r"([\xbc\xbd\xbe\u2153-\u215e])", lambda text: _PARTS.get(text, text)),
        (r"((?i:-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(?:&amp;|&)P-500|S(?:&amp;|&)Ls))", _ampersand),
        (rf"((?i:Cap){_APOS}(?i:n)|(?i:c){_APOS}(?i:est))", _ampersand),
        (rf"({_SLASHED})", as_is),
        (r"([A-Z]*\$|\#)", as_is),
        (r"([\xa2\xa3\xa4\xa5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6])", lambda text: _MONEY.get(text, text)),
        *((rf"({before}){after}{_ANY_SPACE}", make, cut, needs) for before, make, cut in (
            (r"[A-Za-z]\.", lambda text: text[:-1], 1), (rf"{_INITIALS}\.", as_is, 0),
        ) for after, needs in (
            (rf"{_ANY_SPACE}+(?:{_any_of(_AFTER_INITIALS)}|{_ELEMENT})", None),
            (rf"{_SPACE}+{_DECLARATION}", _CLOSED), (rf"{_SPACE}*\n{_ANY_SPACE}*{_DECLARATION}", None),
        )),
        (rf"({_any_of(_BEFORE_NUMBER)}\.){_ANY_SPACE}?[{_D}]", as_is),
        (rf"({_any_of('pt[eyEY] co')}\.){_SPACE}(?i:ltd|lim)", as_is),
        (rf"({_LOWER}\.)(?s:..)", as_is),
        (rf"({_LOWER}\.)", as_is),
        (rf"({_CAPITAL}\.)", as_is),
        (rf"({_INITIALS}\.)", as_is),
        (rf"({_CAPITAL}){_SPACE}", as_is),
        (rf"({_INITIALS}){_ANY_SPACE}", as_is),
        (rf"({_APOS}[0-9][0-9]){_ANY_SPACE}", as_is),
        (rf"([{_W}{_D}]+(?:\.[{_W}{_D}]+)*\.{_any_of(_EXTENSIONS)})(?:{_ANY_SPACE}|[.?!,])", as_is, 0, _FILE),
        (rf"({_WORD}\.){_PAUSE}", _without_hyphens),
        (r"(\([0-9]{2,3}\)[ \xa0]?[0-9]{3,4}[\- \xa0]?[0-9]{3,5})", lambda text: _brackets(_no_breaks(text))),
        (r"((?:\+\+?)?(?:[0-9]{2,4}[\- \xa0])?[0-9]{2,4}[\- \xa0][0-9]{3,4}[\- \xa0]?[0-9]{3,5})", _no_breaks),
        (r"((?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})", as_is),
        (r"""("|(?i:&quot;))[A-Za-z0-9$]""", _left_quote),
        (r"""("|(?i:&quot;))""", _quote),
        (r"(\x7f)", _dropped),
        (r"((?i:&lt;)|<)", _says("<")),
        (r"((?i:&gt;)|>)", _says(">")),
        (r"([<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _brackets),
        (rf"([\^x=~<>]\.\[\^(?i:x)=~<>\]|{_EYES}_{_EYES}|\({_EYES}[_.]?{_EYES}\)|\({_FACE[:-2]}]-[\^x=~<>'`]\))", _brackets),
        (r"(\{)", _says("-LCB-")),
        (r"(\})", _says("-RCB-")),
        (r"(\[)", _says("-LSB-")),
        (r"(\])", _says("-RSB-")),
        (r"(\()", _says("-LRB-")),
        (r"(\))", _says("-RRB-")),
        (r"(-+)", lambda text: "--" if len(text) in (3, 4) else text),
        (r"(\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026])", _says("...")),
        (r"(@+|\#+|_+)", as_is),
        (r"(\*+|(?:\\\*){1,3})", as_is),
        (rf"({_PAUSE})", as_is),
        (r"([?!]+)", as_is),
        (r"([.\xa1\xbf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002])", as_is),
        (r"(=)", as_is),
        (r"(/)", as_is),
        (rf"({_COMPOUND}\.){_PAUSE}", _without_hyphens, 0, _JOINED),
        (rf"({_COMPOUND})", _without_hyphens, 0, _JOINED),
        (rf"({_HYPHENATED}\.){_PAUSE}", as_is),
        (rf"({_HYPHENATED})", as_is),
        (rf"({_CAPITALS}\.){_PAUSE}", _ampersand),
        (rf"({_CAPITALS})", _ampersand),
        (r"(')[A-Za-z][^ \t\n\r\xa0]", _left_quote),
        (rf"({_AUX})", _quote),
        (rf"({_NOT})", _quote),
        (rf"(''|[`\u2018\u2019\u201a\u201b\u201c\u201d\x91-\x94\u201e\u201f\u2039\u203a\xab\xbb]{{1,2}}|{_APOS})", _quote),
        (r"(<<|>>)", as_is),
        (rf"([+%&~^|\\{_class(SYMBOLS)}])", as_is),
        (rf"({_SPACE}+|[\0\n\u200b\u200e\u200f\ufeff])", _dropped),
        (r"((?i:&nbsp;))", _dropped),
        (r"(.)", _dropped),
    ]  # fmt: skip
    return [Rule(re.compile(entry[0]), entry[1], *entry[2:]) for entry in given]


@functools.cache
def all_rules() -> list[Rule]:
    """Every rule, compiled once."""
    return _rules()
