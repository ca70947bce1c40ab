"""The chunker polynomial of a repository's configuration.

restic cuts files with a Rabin fingerprint over a random irreducible polynomial of degree 53 over GF(2) and
refuses a repository whose polynomial is not irreducible. We cut with another algorithm, yet give each new
repository such a polynomial, so that stock restic can write to it too. A polynomial is an int, bit i = x^i.
"""

from __future__ import annotations

import secrets

DEGREE = 53


def random_polynomial() -> int:
    """An irreducible polynomial of degree 53; one in 27 odd candidates is one."""
    while True:
        candidate = secrets.randbits(DEGREE) | (1 << DEGREE) | 1
        if is_irreducible(candidate):
            return candidate


def is_irreducible(polynomial: int) -> bool:
    """Ben-Or's test: no factor of degree i divides x^(2^i) - x, for i up to half the degree."""
    degree = polynomial.bit_length() - 1
    if degree < 1:
        return False
    power = 2  # x
    for _ in range(degree // 2):
        power = _square_mod(power, polynomial)
        if _gcd(polynomial, power ^ 2) != 1:
            return False
    return True


def _mod(value: int, modulus: int) -> int:
    size = modulus.bit_length()
    while (excess := value.bit_length() - size) >= 0:
        value ^= modulus << excess
    return value


def _square_mod(value: int, modulus: int) -> int:
    # Squaring over GF(2) spreads the bits: x^i becomes x^2i.
    return _mod(int(bin(value)[2:], 4), modulus)


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, _mod(a, b)
    return a
