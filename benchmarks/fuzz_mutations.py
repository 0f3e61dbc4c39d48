"""Damage to the bytes of a file, the same for the same random generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Field = tuple[int, int]
_POWERS = [2**k for k in (0, 1, 7, 8, 15, 16, 20, 24, 28, 31, 32, 40, 48, 62, 63)]


def mutate(data: bytes, fields: Sequence[Field], other: bytes, chance: random.Random) -> bytes:
    """A damaged copy of `data`, one to three kinds of damage together; never the same bytes.

    Parameters
    ----------
    fields
        Offset and width of numbers that say how much or where; half of all damage is to them.
    other
        Another file, to splice blocks from.
    """
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.choice(_KINDS)
        kind(damaged, fields, other, chance)
    if bytes(damaged) == data:
        damaged[chance.randrange(len(damaged))] ^= 0xFF
    return bytes(damaged)


def _overwrite_field(data: bytearray, fields: Sequence[Field], other: bytes, chance: random.Random) -> None:
    """A length, shape, type or offset becomes extreme, in either byte order, or points somewhere in the file."""
    inside = [f for f in fields if f[0] + f[1] <= len(data)]
    for _ in range(chance.choice((1, 1, 2, 4))) if inside else ():
        offset, width = chance.choice(inside)
        limit = 1 << (8 * width)
        value = chance.choice(
            (0, limit - 1, limit // 2, limit // 2 - 1, len(data), len(data) - 1, chance.randrange(len(data)),
             chance.choice(_POWERS), chance.choice(_POWERS) - 1, chance.randrange(limit), chance.randrange(32))
        )  # fmt: skip
        data[offset : offset + width] = (value % limit).to_bytes(width, chance.choice(("little", "big")))


def _flip_bits(data: bytearray, fields: Sequence[Field], other: bytes, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 2, 8, 32))) if data else ():
        near_start = chance.random() < 0.5
        data[chance.randrange(min(len(data), 2048) if near_start else len(data))] ^= 1 << chance.randrange(8)


def _truncate(data: bytearray, fields: Sequence[Field], other: bytes, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) if len(data) > 1 else 0 :]


def _move_block(data: bytearray, fields: Sequence[Field], other: bytes, chance: random.Random) -> None:
    """A block is doubled, cut out, swapped with another, or blanked."""
    size = min(chance.choice((1, 2, 4, 8, 64, 512)), len(data) // 2)
    if size == 0:
        return
    one, two = (chance.randrange(len(data) - size + 1) for _ in range(2))
    block = bytes(data[one : one + size])
    kind = chance.randrange(4)
    if kind == 0:
        data[two:two] = block
    elif kind == 1:
        del data[one : one + size]
    elif kind == 2:
        data[one : one + size], data[two : two + size] = data[two : two + size], block
    else:
        data[one : one + size] = chance.choice((b"\0", b"\xff", b" ")) * size


def _splice(data: bytearray, fields: Sequence[Field], other: bytes, chance: random.Random) -> None:
    if data and other:
        start = chance.randrange(len(other))
        block = other[start : start + chance.choice((4, 16, 256))]
        at = chance.randrange(len(data))
        data[at : at + len(block)] = block


_KINDS: tuple[Callable[[bytearray, Sequence[Field], bytes, random.Random], None], ...] = (
    _overwrite_field, _overwrite_field, _overwrite_field, _overwrite_field, _overwrite_field,
    _flip_bits, _flip_bits, _truncate, _move_block, _splice,
)  # fmt: skip
