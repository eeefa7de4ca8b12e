"""Cells of a table and tags of a header understood: sexes, views, ages, flags, and what means nothing."""

import re
import unicodedata

LONGEST = 64  # characters: no word or number of these is longer
OLDEST = 120  # years; NIH's first release has ages such as 414


def listed(text: str) -> tuple[str, ...]:
    """The words of a line."""
    return tuple(text.split())


_BLANK = {
    *listed('- -- ? . / nan na n/a #n/a nat none null nil unknown unk missing unspecified'),
    *listed('undefined unbekannt k.a.'),
    *('', 'not available', 'not specified', 'not given', 'keine angabe'),
}
_FEMALE = set(listed('f w female woman girl weiblich frau femme feminin femenino mujer femina'))
_MALE = set(listed('m male man boy männlich maennlich mann homme masculin masculino hombre masculum'))
_OTHER_SEX = set(listed('o x u d other divers diverse unknown indeterminate intersex nonbinary'))
_PA = ('posteroanterior', 'posterioranterior', 'posteriortoanterior')
_AP = ('anteroposterior', 'anteriorposterior', 'anteriortoposterior')
_SIDEWAYS = set(listed('lateral lat seitlich ll rl lld rld llo rlo laterolateral lao rao lpo rpo oblique l r'))
_FLAGS = {
    **dict.fromkeys(listed('true yes y x positive pos present ja wahr'), 'positive'),
    **dict.fromkeys(listed('false no n negative neg absent nein falsch'), 'negative'),
    **dict.fromkeys(listed('uncertain unclear equivocal maybe unsicher'), 'uncertain'),
    '1': 'positive',
    '0': 'negative',
    '-1': 'uncertain',
}
_WHOLE = re.compile(r'([+-]?)0*(\d+)(?:[.,]0*)?')
_UNITS = {
    **dict.fromkeys(('', 'y', 'yr', 'yrs', 'year', 'years', 'yo', 'yearold', 'yearsold'), 1),
    **dict.fromkeys(('j', 'jahr', 'jahre', 'a', 'an', 'ans', 'anos', 'años'), 1),
    **dict.fromkeys(
        ('m', 'mo', 'mos', 'mon', 'month', 'months', 'monat', 'monate', 'monthold', 'monthsold'), 12
    ),
    **dict.fromkeys(('w', 'wk', 'wks', 'week', 'weeks', 'woche', 'wochen'), 52),
    **dict.fromkeys(('d', 'day', 'days', 'tag', 'tage'), 365),
}
_AGE = re.compile(r'[>≥=~]*(\d{1,3})(?:[.,]\d{0,9})?\+?([^\W\d_]*)\.?')


def plain(text: str) -> str:
    """Letters and digits alone, in lower case: 'Patient ID', 'patient_id' and 'PatientId' are one."""
    text = unicodedata.normalize('NFKC', text[:1000]).casefold()
    return ''.join(sign for sign in text if sign.isalnum())


def is_blank(text: str) -> bool:
    """Whether a cell says that nothing is known: '', 'nan', 'N/A', 'unknown', ..."""
    return len(text) <= LONGEST and text.strip().casefold() in _BLANK


def whole(text: str) -> str | None:
    """'3' of '3', '3.0', '003' or '3,0', with its sign; None where the text is no whole number."""
    found = _WHOLE.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if not found:
        return None
    return found[2] if found[1] != '-' or found[2] == '0' else f'-{found[2]}'


def flag(text: str) -> str | None:
    """'positive', 'negative', 'uncertain' (-1), '' for a blank; None where the cell is none of them."""
    if is_blank(text):
        return ''
    return _FLAGS.get(whole(text) or text.strip().casefold()) if len(text) <= LONGEST else None


def sex(text: str) -> str | None:
    """F, M or unknown; None where the word was not understood."""
    word = text.strip().casefold() if len(text) <= LONGEST else None
    if word in _FEMALE or word in _MALE:
        return 'F' if word in _FEMALE else 'M'
    return 'unknown' if word in _OTHER_SEX or is_blank(text) else None


def view(text: str) -> str | None:
    """PA, AP, lateral, or unknown (also 'frontal', which says less); None where it was not understood."""
    if is_blank(text):
        return 'unknown'
    text = re.sub(r'\b([ap])[./ ]{1,2}([ap])\b', r'\1\2', text[:LONGEST].casefold())  # p.a., A/P
    parts = re.findall(r'[^\W\d_]+', text)
    joined = ''.join(parts)
    pa = 'pa' in parts or joined.startswith(_PA)
    ap = 'ap' in parts or joined in ('apsupine', 'aperect', 'apportable') or joined.startswith(_AP)
    if pa != ap:
        return 'PA' if pa else 'AP'
    if not pa and (_SIDEWAYS.intersection(parts) or 'lateral' in joined):
        return 'lateral'
    return 'unknown' if joined in ('frontal', 'front') else None


def years(text: str) -> int | None:
    """Whole years; -1 where unknown or above 120; None where the text is no age.

    Of '58', '58.0', '45,5', '058Y', '011M', '003W', '020D', '>89', '90+', '45 years', '18 months'.
    """
    if is_blank(text) or whole(text) == '-1':
        return -1
    word = re.sub(r'[\s/]|-(?=[^\W\d_])|(?<=[^\W\d_])-', '', text.casefold()) if len(text) <= LONGEST else ''
    if word == '<1':
        return 0
    found = _AGE.fullmatch(word)
    if not found or found[2] not in _UNITS:
        return None
    age = int(found[1]) // _UNITS[found[2]]
    return age if age <= OLDEST else -1
