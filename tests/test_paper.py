"The audit's search against a second, slower way to the same answer: decimals printed as text, no shared code."

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pytest

from liverdis.study.paper import CORRECT, TABLE2, search

MODES = {'rounded': (ROUND_HALF_UP, ROUND_HALF_EVEN), 'truncated': (ROUND_DOWN,)}
MODES['either'] = MODES['rounded'] + MODES['truncated']


def prints(modes):
    "{printed text: {size: [correct, ...]}} for the six values."
    wanted = {str(v) for v in TABLE2.values.ravel()}
    out = {w: {} for w in wanted}
    for n in range(1, 238):
        for k in range(n + 1):
            for text in {str((Decimal(100 * k) / n).quantize(Decimal('.1'), m)) for m in modes} & wanted:
                out[text].setdefault(n, []).append(k)
    return out


@pytest.mark.parametrize('rule', MODES)
def test_one_wrong_value(rule):
    can, found = prints(MODES[rule]), set()
    for a in range(1, 238):
        for b in range(1, 239 - a):
            sizes = (a, b, 239 - a - b)
            values = {arm: [can[str(v)].get(n, []) for v, n in zip(TABLE2[arm], sizes)] for arm in TABLE2}
            if sum(not v for arm in values.values() for v in arm) > 1:
                continue
            wrong = {}  # arm: (number of wrong values, counts)
            for arm, (x, y, z) in values.items():
                total = CORRECT[arm]
                wrong[arm] = [(0, (i, j, total - i - j), None) for i in x for j in y if total - i - j in z]
                wrong[arm] += [
                    (1, (i, j, total - i - j), 3)
                    for i in x
                    for j in y
                    if total - i - j not in z and 0 <= total - i - j <= sizes[2]
                ]
                wrong[arm] += [
                    (1, (i, total - i - k, k), 2)
                    for i in x
                    for k in z
                    if total - i - k not in y and 0 <= total - i - k <= sizes[1]
                ]
                wrong[arm] += [
                    (1, (total - j - k, j, k), 1)
                    for j in y
                    for k in z
                    if total - j - k not in x and 0 <= total - j - k <= sizes[0]
                ]
            for n1, k1, f1 in wrong['baseline']:
                for n2, k2, f2 in wrong['proposed']:
                    if n1 + n2 <= 1:
                        found.add((sizes, k1, k2, 'baseline' if f1 else 'proposed' if f2 else None, f1 or f2))
    ours = search(rule, 1)
    assert len(search(rule, 0)) == sum(f[3] is None for f in found) == 0
    assert set(zip(ours.sizes, ours.baseline, ours.proposed, ours.arm, ours.fold)) == found
