"""Prints the coefficients of the polynomials in csrc/kernels/math.inl. Needs mpmath.

    python bench/coefficients.py

They are minimax fits, by Remez's exchange algorithm, of

    q(r) = (e^r - 1 - r) / r^2            for |r| <= ln 2 / 2; |r| times the error is smallest
    P(u) = Phi(-a) e^(a^2 / 2) (a + k)    for u = a / (a + k) - m and 0 <= a <= end; the relative
                                          error is smallest

The pole k gives the smallest error for the degree. The shift m is near the middle of the range, so
that the powers of u, and with them the rounding errors of Horner's rule, become small quickly.
"""

import struct

import mpmath
from mpmath import mp, mpf

mp.dps = 60

# Type, format, degree of q, degree of P, k, m, and the end of the tail, beyond which results are 0.
TYPES = [
    ("float", "{:.9g}f", 4, 9, mpf("3.5"), mpf(13421773) / 2**25, mpf("14.7")),
    ("double", "{:.17g}", 10, 22, mpf(5), mpf("0.4375"), mpf(39)),
]


def minimax(f, weight, low, high, degree, rounds=12, points=400):
    """The coefficients c with the smallest maximum of weight(x) |sum c_k x^k - f(x)|, and it."""
    count = degree + 2
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = [middle - half * mpmath.cos(mp.pi * i / (count - 1)) for i in range(count)]
    grid = [middle - half * mpmath.cos(mp.pi * i / points) for i in range(points + 1)]
    values, weights = [f(x) for x in grid], [weight(x) for x in grid]
    for _ in range(rounds):
        matrix, right = mpmath.matrix(count, count), mpmath.matrix(count, 1)
        for i, x in enumerate(nodes):
            for k in range(degree + 1):
                matrix[i, k] = x**k
            matrix[i, degree + 1] = (-1) ** i / weight(x)
            right[i] = f(x)
        solution = mpmath.lu_solve(matrix, right)
        c = [solution[k] for k in range(degree + 1)]
        error = [
            w * (mpmath.polyval(c[::-1], x) - v)
            for x, v, w in zip(grid, values, weights, strict=True)
        ]
        worst = max(abs(e) for e in error)
        extrema, best = [], 0  # the largest error between changes of sign
        for i in range(1, len(grid)):
            if (error[i] > 0) != (error[best] > 0):
                extrema.append(best)
                best = i
            elif abs(error[i]) > abs(error[best]):
                best = i
        extrema.append(best)
        while len(extrema) > count:
            extrema.pop(0 if abs(error[extrema[0]]) < abs(error[extrema[-1]]) else -1)
        if len(extrema) < count or worst < abs(solution[degree + 1]) * mpf("1.02"):
            break
        nodes = [grid[i] for i in extrema]
    return c, worst


def exp_quotient(r):
    return (mpmath.expm1(r) - r) / r**2 if abs(r) > mpf(10) ** -15 else mpf(1) / 2 + r / 6


def show(name, letter, form, worst, coefficients):
    values = [float(c) for c in coefficients]
    if name == "float":
        values = [struct.unpack("f", struct.pack("f", v))[0] for v in values]
    print(name, letter, mpmath.nstr(worst, 2), ", ".join(form.format(v) for v in values))


def main():
    for name, form, exp_degree, tail_degree, k, m, end in TYPES:
        reach = mpmath.log(2) / 2 * mpf("1.0005")  # n is the nearest integer but for a rounding
        c, worst = minimax(exp_quotient, lambda r: abs(r) + mpf("1e-9"), -reach, reach, exp_degree)
        show(name, "q", form, worst, c)

        def tail(u, k=k, m=m):
            a = k * (u + m) / (1 - u - m)
            return mpmath.exp(a * a / 2) * mpmath.erfc(a / mpmath.sqrt(2)) / 2 * (a + k)

        top = end / (end + k) - m
        c, worst = minimax(tail, lambda u, f=tail: 1 / f(u), -m, top, tail_degree)
        show(name, "P", form, worst, c)


if __name__ == "__main__":
    main()
