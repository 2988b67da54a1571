"""Exact pass@k, maj@k and best-of-n from all samples of one question: no bootstrap, no noise beyond the samples'."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that k of n samples, drawn without replacement, hold one of the c correct ones.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of arXiv 2107.03374, equation 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def maj_at_k(counts: Sequence[int], correct: int | None, unparsed: int, k: int) -> float:
    """Return the probability that the truth wins the vote of k of the n samples, drawn without replacement.

    Args:
      counts: samples per class.
      correct: class of the truth; None if no sample gave it (the result is then 0).
      unparsed: samples without an answer. They take up draws but never vote; n = sum(counts) + unparsed.
      k: samples that vote, 1 <= k <= n.

    A tie is split evenly, which is what "first seen wins" gives on average over the order of the samples.

    If the truth is drawn j times, it wins alone when every other class is drawn less often, and one time in
    t + 1 when t others are drawn j times as well. The draws are counted with polynomials in x (draws) and s
    (ties): a class of c samples contributes sum_{a<j} C(c, a) x^a + s C(c, j) x^j.
    Raises ValueError for impossible counts.
    """
    n = sum(counts) + unparsed
    if min(counts, default=0) < 0 or unparsed < 0 or not 1 <= k <= n:
        raise ValueError(f"maj_at_k needs counts >= 0 and 1 <= k <= {n} samples, got k={k}, unparsed={unparsed}")
    if correct is None:
        return 0.0
    if not 0 <= correct < len(counts):
        raise ValueError(f"the truth's class must be one of the {len(counts)} classes, got {correct}")
    own = counts[correct]
    others = Counter(c for i, c in enumerate(counts) if i != correct)
    wins: Counter[int] = Counter()  # number of other classes that tie -> number of draws
    for j in range(max(1, k - (n - own)), min(own, k) + 1):
        for ties, ways in enumerate(_other_draws(others, unparsed, j, k - j)):
            wins[ties] += comb(own, j) * ways
    return float(sum(Fraction(ways, ties + 1) for ties, ways in wins.items()) / comb(n, k))


def best_of_n(scores: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """Return the probability that the highest-scored of n of the N samples, drawn without replacement, is correct.

    Args:
      scores: [N], finite; of equal scores the earlier sample ranks higher.
      correct: [N].
      n: samples that are drawn, 1 <= n <= N.

    The i-th best sample (from 0) is the best of C(N - 1 - i, n - 1) of the C(N, n) subsets: it is in them, and so are
    n - 1 of the samples below it. Raises ValueError for an impossible n or lists of different lengths.
    """
    if not 1 <= n <= len(scores):
        raise ValueError(f"best_of_n needs 1 <= n <= {len(scores)} samples, got n={n}")
    ranked = sorted(zip(scores, correct, strict=True), key=lambda sample: -sample[0])  # stable: ties keep their order
    ways = sum(comb(len(ranked) - 1 - i, n - 1) for i, (_, right) in enumerate(ranked) if right)
    return float(Fraction(ways, comb(len(ranked), n)))


def _other_draws(others: Counter[int], unparsed: int, limit: int, draws: int) -> list[int]:
    """Count the ways to take `draws` other samples, at most `limit` of a class; index: classes at `limit`.

    `others` maps a class size to the number of classes of that size. A polynomial in x is one Python
    integer, its value at x = 2^bits: no coefficient exceeds the number of subsets of these samples, so
    coefficients never overlap, and a product of polynomials is one product of integers.
    """
    bits = 1 + unparsed + sum(size * times for size, times in others.items())
    x = 1 << bits
    free = unparsed + sum(size * times for size, times in others.items() if size < limit)
    by_ties = [(1 + x) ** free]  # index: power of s
    for size, times in others.items():
        if size < limit:
            continue
        below = sum(comb(size, a) << (bits * a) for a in range(limit))
        at = comb(size, limit) << (bits * limit)
        group = [comb(times, t) * at**t * below ** (times - t) for t in range(min(times, draws // limit) + 1)]
        by_ties = _product(by_ties, group, draws // limit + 1)
    return [(poly >> (bits * draws)) & (x - 1) for poly in by_ties]


def _product(a: list[int], b: list[int], length: int) -> list[int]:
    result = [0] * min(len(a) + len(b) - 1, length)
    for i, p in enumerate(a):
        for j, q in enumerate(b[: len(result) - i]):
            result[i + j] += p * q
    return result
