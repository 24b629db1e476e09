"""Units as models write them, in one spelling. A unit is known or it is just words."""

import re

_SPELLINGS = {
    "cm": "cm centimeter centimeters centimetre centimetres cms",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres kms",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards yds",
    "mi": "mi mile miles",
    "g": "g gm gms gram grams",
    "kg": "kg kilogram kilograms kgs",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "l": "l liter liters litre litres",
    "ml": "ml milliliter milliliters",
    "gal": "gal gallon gallons",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "mph": "mph",
    "kmh": "kmh kph",
    "dollar": "dollar dollars usd bucks",
    "cent": "cent cents",
    "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "am": "am",
    "pm": "pm",
    "unit": "unit units",
}
UNITS = {
    spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split() if len(spelling) > 1
}
"""Spelling in lower case -> unit. Single letters count as units only within text."""
_LETTERS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
UNIT_WORDS = frozenset([*_POWERS, "per"])
"""Words that go with units."""


def canonical_unit(tokens: list[str]) -> str | None:
    """The unit that tokens such as ["square", "feet"] or ["cm", "^", "{", "2", "}"] name; None when it is not known.

    Only what is known can contradict: "3 apples" has no unit that differs from "3 pears".
    """
    words = re.findall(r"[a-z]+|[23]|/", " ".join(tokens).casefold().replace(".", "").replace("\\degree", " degree "))
    unit, power = [], ""
    for word in words:
        if word in _POWERS:
            power = _POWERS[word]
        elif word in ("2", "3"):
            power = f"^{word}"
        elif word in ("per", "/"):
            unit.append("/")
        elif word in _LETTERS:
            unit.append(_LETTERS[word])
        elif word not in ("of", "a", "an"):
            return None
    name = "".join(unit).replace("mi/h", "mph").replace("km/h", "kmh")
    return None if name in ("", "unit", "/") else name + power
