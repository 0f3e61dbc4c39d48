"""The verdict: one sentence with numbers that says what happened to a sample and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atomdiffuser.config import ReportSettings
from atomdiffuser.report.facts import SeriesFacts, Witness
from atomdiffuser.report.formatting import (
    CRITICAL_SYMBOL,
    duration,
    integer,
    interval,
    known,
    number,
    plural,
    unit_text,
)

Level = Literal["good", "look", "bad"]
LEVEL_WORDS: dict[Level, str] = {"good": "Sound", "look": "Needs a look", "bad": "Do not use as is"}
LEVEL_ORDER: dict[Level, int] = {"good": 0, "look": 1, "bad": 2}
MIN_FRAMES_FOR_CURVE = 3
MANY_EXCLUDED = 0.25


@dataclass(frozen=True)
class Flag:
    """Something a reader should look at: a short label, and why it was raised."""

    level: Level
    label: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """Level, its word, the sentence's clauses and the flags behind the level."""

    level: Level
    clauses: tuple[str, ...]
    flags: tuple[Flag, ...]

    @property
    def word(self) -> str:
        return LEVEL_WORDS[self.level]

    @property
    def sentence(self) -> str:
        text = "; ".join(self.clauses)
        return text[:1].upper() + text[1:] + "."

    @property
    def damage_clause(self) -> str:
        """The first clause alone, for tables."""
        return self.clauses[0]


def judge(facts: SeriesFacts, settings: ReportSettings) -> Verdict:
    """Turn the numbers of one series into a verdict."""
    flags = tuple(_flags(facts, settings))
    level = max((f.level for f in flags), key=LEVEL_ORDER.__getitem__, default="good")
    if facts.n_valid < 2:
        why = "no frame could be used" if facts.n_valid == 0 else "only one frame could be used"
        clauses: list[str] = [f"{why}, so neither drift nor damage is known", frames_clause(facts)]
        return Verdict("bad", tuple(clauses), flags)
    clauses = [
        damage_clause(facts),
        *(clause for w in (facts.contrast, facts.intensity) if (clause := critical_clause(w)) and _speaks(w, facts)),
        drift_clause(facts),
        frames_clause(facts),
        registration_clause(facts, settings),
    ]
    return Verdict(level, tuple(clauses), flags)


def damage_clause(facts: SeriesFacts) -> str:
    """What contrast and mean intensity did, and after how much beam."""
    parts = [change_text(w) for w in (facts.contrast, facts.intensity) if w.measured]
    if not parts:
        return f"change of contrast and intensity could not be measured ({exposure_text(facts)})"
    if not facts.contrast.measured:
        parts.insert(0, "contrast not measurable")
    return f"{', '.join(parts)} after {exposure_text(facts)}"


def change_text(witness: Witness) -> str:
    """“contrast lost 31 % (95 % CI 27–35)”, or how small a change would have been seen."""
    if not witness.changed:
        limit = witness.detection_limit_percent
        return (
            f"{witness.witness}: no change above {number(limit, 2)} %"
            if known(limit)
            else f"{witness.witness}: no change seen"
        )
    sign = 1.0 if witness.loss_percent >= 0 else -1.0
    lo, hi = sorted((sign * witness.loss_lo95, sign * witness.loss_hi95))
    value, _, ends = interval(sign * witness.loss_percent, lo, hi).partition(" (")
    ci = f" (95 % CI {ends}" if ends else ""
    return f"{witness.witness} {'lost' if sign > 0 else 'gained'} {value} %{ci}"


def exposure_text(facts: SeriesFacts) -> str:
    """How much beam the series had: fluence, else time, else frames."""
    if known(facts.fluence_e_per_A2):
        return f"{number(facts.fluence_e_per_A2)} {unit_text('e_per_A2')}"
    if known(facts.duration_s):
        return f"{duration(facts.duration_s)} (fluence unknown)"
    return f"{plural(facts.n_frames, 'frame')} (time and fluence unknown)"


def critical_clause(witness: Witness) -> str:
    """“F_c 8.6 (7.1–10.9) × 10⁴ e⁻/Å²”, a lower bound as “F_c > X (95 %)”, empty when unknown."""
    text = critical_text(witness)
    if not text:
        return ""
    name = CRITICAL_SYMBOL.get(witness.unit, "F_c") + (
        "" if witness.witness == "contrast" else f" of {witness.witness}"
    )
    return f"{name} {text} {unit_text(witness.unit)}" if not witness.lower_bound else f"{name} {text}"


def critical_text(witness: Witness) -> str:
    """The critical fluence with its interval, without its unit; “> X unit (95 %)” for a lower bound."""
    if not known(witness.critical) or witness.critical <= 0:
        return ""  # nothing fitted; a bound of zero says nothing either
    if witness.lower_bound:
        return f"> {number(witness.critical)} {unit_text(witness.unit)} (95 %)"
    return interval(witness.critical, witness.critical_lo95, witness.critical_hi95)


def drift_clause(facts: SeriesFacts) -> str:
    return (
        f"drift {number(facts.drift_rate, 2)} {facts.drift_rate_unit}"
        if known(facts.drift_rate)
        else "drift rate unknown"
    )


def frames_clause(facts: SeriesFacts) -> str:
    if facts.n_excluded == 0:
        return f"all {plural(facts.n_frames, 'frame')} used"
    return f"{integer(facts.n_excluded)} of {plural(facts.n_frames, 'frame')} excluded"


def registration_clause(facts: SeriesFacts, settings: ReportSettings) -> str:
    """Whether the drift can be trusted, from closure and suspected lattice hops."""
    closure = f"closure {number(facts.closure_px, 2)} px" if known(facts.closure_px) else ""
    hops = f"{plural(facts.hops, 'pair')} may be off by a lattice vector" if facts.hops else ""
    details = ", ".join(d for d in (closure, hops) if d)
    if facts.n_valid < MIN_FRAMES_FOR_CURVE:
        return f"registration from one pair, which nothing checks{f' ({details})' if details else ''}"
    if facts.hops or over_closure(facts, settings):
        return f"registration needs a look ({details})"
    return f"registration sound ({details})" if details else "registration could not be checked"


def over_loss(witness: Witness, settings: ReportSettings) -> bool:
    """Whether a signal changed significantly, and by as much as the settings mark."""
    return witness.changed and abs(witness.loss_percent) >= settings.warn_loss_percent


def over_closure(facts: SeriesFacts, settings: ReportSettings) -> bool:
    """Whether the largest closure error is above what the settings allow."""
    return known(facts.closure_px) and facts.closure_px > settings.warn_closure_px


def _speaks(witness: Witness, facts: SeriesFacts) -> bool:
    """Contrast always states its critical fluence; intensity only when it fell measurably."""
    return witness.witness == "contrast" or (witness.changed and witness.loss_percent > 0 and not witness.lower_bound)


def _flags(facts: SeriesFacts, settings: ReportSettings) -> list[Flag]:
    flags = []
    if facts.n_valid < 2:
        flags.append(
            Flag("bad", "no result", f"{integer(facts.n_valid)} of {plural(facts.n_frames, 'frame')} could be used")
        )
    elif facts.n_valid < MIN_FRAMES_FOR_CURVE:
        flags.append(Flag("look", "two frames", "neither a curve nor a closure can be checked"))
    if facts.hops:
        flags.append(
            Flag("look", "lattice hops", f"{integer(facts.hops)} of {plural(facts.n_pairs, 'pair')} suspected")
        )
    if over_closure(facts, settings):
        flags.append(Flag("look", "closure", f"above {number(settings.warn_closure_px)} px"))
    for witness in (facts.contrast, facts.intensity):
        if over_loss(witness, settings):
            what = f"{witness.witness} {'loss' if witness.loss_percent > 0 else 'gain'}"
            flags.append(Flag("look", what, f"{number(settings.warn_loss_percent)} % or more"))
    if facts.n_excluded > MANY_EXCLUDED * facts.n_frames and facts.n_valid >= 2:
        flags.append(Flag("look", "frames excluded", f"more than {number(100 * MANY_EXCLUDED)} %"))
    if facts.out_of_view and facts.n_valid >= 2:
        why = f"after frame {facts.last} too little of the reference field is in view"
        flags.append(Flag("look", "drifted away", why))
    if not facts.fluence_known:
        flags.append(Flag("look", "fluence unknown", "beam current, dwell time or pixel size is missing"))
    return flags
