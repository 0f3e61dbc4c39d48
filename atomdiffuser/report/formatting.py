"""Numbers and units as text: every figure, table and sentence of a report formats its numbers here.

`report.js` holds the same rules for the few numbers that only exist while the reader moves the time slider.
"""

from __future__ import annotations

import math

UNKNOWN = "–"
MINUS = "−"
INFINITY = "∞"
UNITS = {
    "e_per_A2": "e⁻/Å²",
    "s": "s",
    "frame": "frames",
    "nm": "nm",
    "px": "px",
    "percent": "%",
}
CRITICAL_SYMBOL = {"e_per_A2": "F_c", "s": "t_c", "frame": "n_c"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGE, _SMALL = 1e4, 1e-3
SMALLEST_P = 1e-4


def known(value: object) -> bool:
    """Whether a table's value is a finite number."""
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def number(value: object, digits: int = 3) -> str:
    """A number with `digits` significant digits; powers of ten outside 0.001 … 10 000; a dash when unknown.

    Examples
    --------
    >>> number(0.41234), number(32045.0), number(-2), number(float("nan"))
    ('0.412', '3.2 × 10⁴', '−2', '–')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    x = float(value)  # type: ignore[arg-type]
    if math.isnan(x):
        return UNKNOWN
    if math.isinf(x):
        return INFINITY if x > 0 else MINUS + INFINITY
    if x == 0:
        return "0"
    x = float(f"{x:.{digits - 1}e}")
    exponent = _common_exponent(x)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(x)) - exponent + 1e-12))
    text = f"{x / 10.0**exponent:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return _signed(text) + power_of_ten(exponent)


def integer(value: object) -> str:
    """A count, with thin spaces between thousands."""
    return _signed(f"{int(value):,}".replace(",", "\u202f")) if known(value) else UNKNOWN  # type: ignore[call-overload]


def fixed(value: object, decimals: int) -> str:
    """A number with a fixed count of decimals, for columns that should line up; a dash when unknown."""
    return _signed(f"{float(value):.{decimals}f}") if known(value) else UNKNOWN  # type: ignore[arg-type]


def interval(value: object, lo: object, hi: object) -> str:
    """A value with its 95 % interval, all to the decimals that the interval's width justifies.

    The half width keeps two digits when they begin with 10 … 35, otherwise one.

    Examples
    --------
    >>> interval(31.2, 27.1, 34.9), interval(8.61e4, 7.1e4, 10.9e4)
    ('31 (27–35)', '8.6 (7.1–10.9) × 10⁴')
    """
    if not known(value):
        return UNKNOWN
    x = float(value)  # type: ignore[arg-type]
    ends = [float(e) for e in (lo, hi) if known(e)]  # type: ignore[arg-type]
    if not ends:
        return number(x)
    exponent = _common_exponent(x)
    unit = 10.0**exponent
    half_width = (max(ends) - min(ends)) / 2 if len(ends) == 2 else abs(ends[0] - x)
    decimals = _decimals(half_width / unit) if half_width > 0 else 2
    text = f"{fixed(x / unit, decimals)} ({_end(lo, unit, decimals)}{_joint(lo, hi)}{_end(hi, unit, decimals)})"
    return text + power_of_ten(exponent)


def p_value(value: object) -> str:
    """A p-value; what is smaller than any reader needs is given as a bound."""
    if known(value) and 0 <= float(value) < SMALLEST_P:  # type: ignore[arg-type]
        return f"< 10{str(round(math.log10(SMALLEST_P))).translate(_SUPERSCRIPTS)}"
    return number(value, 2)


def power_of_ten(exponent: int) -> str:
    """The factor “ × 10ⁿ” as text; empty for 10⁰."""
    return f" × 10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""


def unit_text(unit: str) -> str:
    """A unit's name in a table as a reader writes it."""
    return UNITS.get(unit, unit)


def duration(seconds: object) -> str:
    """Seconds as text, in minutes above ten of them."""
    if not known(seconds):
        return UNKNOWN
    s = float(seconds)  # type: ignore[arg-type]
    return f"{number(s / 60)} min" if abs(s) >= 600 else f"{number(s)} s"


def plural(count: int, noun: str) -> str:
    """A count and its noun: 1 frame, 2 frames."""
    return f"{integer(count)} {noun}{'' if count == 1 else 's'}"


def _common_exponent(x: float) -> int:
    if x == 0 or _SMALL <= abs(x) < _LARGE:
        return 0
    return math.floor(math.log10(abs(x)) + 1e-12)


def _decimals(half_width: float) -> int:
    order = math.floor(math.log10(half_width))
    leading = half_width / 10.0**order
    return min(6, max(0, (1 if leading < 3.55 else 0) - order))


def _end(value: object, unit: float, decimals: int) -> str:
    if not known(value):
        return number(value)
    return fixed(float(value) / unit, decimals)  # type: ignore[arg-type]


def _joint(lo: object, hi: object) -> str:
    # a dash between two numbers reads as a minus sign when either is negative
    return " to " if any(known(e) and float(e) < 0 for e in (lo, hi)) else "–"  # type: ignore[arg-type]


def _signed(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.") else MINUS + text[1:]
    return text
