"""Penn Treebank tokenisation of captions, as the official COCO caption scorer gets it from CoreNLP 3.4.1, without Java.

The scorer runs PTBTokenizer with -preserveLines -lowerCase and then drops a list of punctuation tokens. Contractions
and possessives are split ("it 's", "does n't"), abbreviations keep their period ("rd."), hyphenated words stay whole.
A quirk is kept: the list spells brackets in capitals, the tokens are lower-cased, so "(" survives as "-lrb-".
"""

import re

DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_ABBREVIATIONS = (
    # titles, months, streets, companies and the like, from the Penn Treebank's conventions
    "mr|mrs|ms|dr|drs|prof|rev|hon|gen|col|capt|lt|sgt|cpl|pvt|sen|rep|gov|pres|st|ste|jr|sr|esq|mt|ft"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri"
    "|rd|ave|blvd|hwy|bldg|inc|ltd|co|corp|bros|assn|dept|univ|etc|vs|cf|al|approx|ed|est|fig|vol|ph"
)
_TOKEN = re.compile(
    rf"""
    (?P<abbreviation> (?:[a-z]\.){{2,}} | (?:{_ABBREVIATIONS})\.(?![a-z0-9]) )
  | (?P<url> https?://\S+ | www\.\S+[a-z0-9/] )
  | (?P<number> \d+(?:[,.:]\d+)+ | \.\d+ )
  | (?P<special> o'clock | rock\s'n'\sroll | 'n' | '\d0s | y'all | ma'am | o'[a-z]{{3,}} )
  | (?P<slashed> [a-z0-9]+(?:-[a-z]+){{0,2}}(?:/[a-z0-9]+(?:-[a-z]+){{0,2}}){{1,2}} )
  | (?P<word> [^\W_]+ (?: [-_]+ [^\W_]+ | ' [^\W\d_]+ )* )
  | (?P<dots> \.{{2,}} | … ) | (?P<dashes> -{{2,}} | [–—] ) | (?P<other> \S )
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"^(.+?)(n't|'s|'re|'ve|'ll|'d|'m)$")
_JOINED = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_AMPERSAND = re.compile(r"(?<![A-Za-z0-9])[A-Z]+&[A-Z]+(?![A-Za-z0-9])")


def ptb_tokenize(caption: str) -> list[str]:
    """The tokens of a caption, lower-cased, without dropped punctuation; [] for an empty one."""
    text = caption.replace("\n", " ").replace("’", "'").strip()
    text = _AMPERSAND.sub(lambda m: m[0].replace("&", "\x00"), text)  # "A&W" is one token, "b&w" is three
    text = text.lower()
    out: list[str] = []
    for part in text.split():
        if "\x00" in part:
            out.extend(_scan(part.replace("\x00", "amp0amp"), ampersand=True))
        else:
            out.extend(_scan(part))
    return out


def _scan(text: str, ampersand: bool = False) -> list[str]:
    out: list[str] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "word":
            out.extend(_words(token.replace("amp0amp", "&") if ampersand else token))
        elif kind == "slashed":
            out.append(token.replace("/", "\\/"))
        elif kind in ("dots", "dashes"):
            continue
        elif kind == "other":
            token = _BRACKETS.get(token, token)
            if token not in DROPPED and token not in ('"', "“", "”", "‘"):
                out.append({"*": "\\*"}.get(token, token))
        else:
            out.append(token)
    return out


def _words(token: str) -> list[str]:
    if token in _JOINED:
        return _JOINED[token].split()
    split = _CLITIC.match(token)
    return [split[1], split[2]] if split else [token]
