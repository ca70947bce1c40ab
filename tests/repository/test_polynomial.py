from __future__ import annotations

import pytest

from node_agent.repository.polynomial import DEGREE, is_irreducible, random_polynomial


@pytest.mark.parametrize("known", [0b10, 0b11, 0b111, 0b1011, 0b10011, 0x11B, 0x3DA3358B4DC173, 0x25B468838DCB75])
def test_known_irreducible_polynomials_pass(known: int) -> None:
    assert is_irreducible(known)


@pytest.mark.parametrize("product", [0, 1, 0b101, 0b110, 0b1111, 0b10101, 0x3DA3358B4DC174, 0x3DA3358B4DC173 << 1])
def test_products_and_constants_do_not(product: int) -> None:
    assert not is_irreducible(product)


def test_a_product_of_two_large_factors_is_found() -> None:
    product = 0
    for bit in range(9):  # (x^8+x^4+x^3+x+1) times an irreducible of degree 53
        if 0x11B >> bit & 1:
            product ^= 0x3DA3358B4DC173 << bit
    assert not is_irreducible(product)


def test_random_ones_are_irreducible_of_the_right_degree_and_differ() -> None:
    found = {random_polynomial() for _ in range(5)}
    assert len(found) == 5
    assert all(p.bit_length() == DEGREE + 1 and is_irreducible(p) for p in found)
