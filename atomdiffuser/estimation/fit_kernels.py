"""The loops in which the joint fit spends its time, over arrays; `compiled_fit` gives them what they need.

Cells lie in rows, (Y', X') for each of n fits, several of which may be of one pair of frames. Decay fields are bilinear between G × G nodes: a cell's row has a lower node and
a share of the way to the next one, and so has its column. Sums of images against products of hat functions, or of these
and linear functions, are sums of polynomials of second order between two nodes: moments are collected between nodes,
the sums put together from them.

Loops run over parts of arrays from zero: where one begins elsewhere, each number might count from the end, and is
looked at one by one.
"""

from __future__ import annotations

import numpy as np

from atomdiffuser.compiled import compiled, inner

F = np.float32
ONE, HALF = F(1), F(0.5)
BLOCK = 2**13  # cells that are looked at between two passes over them, so that they stay in the cache
LEAST_PIVOT = 1e-12  # of a matrix' diagonal
MOTION, CROSS, FIELD = 4, 4, 3  # images: of the motion, and of the noise in it; motion and fields; fields


@inner
def linear_at(image, y, x):
    """Bilinear value, zero outside."""
    height, width = image.shape
    iy, ix = int(np.floor(y)), int(np.floor(x))
    ty, tx = F(y - iy), F(x - ix)
    total = F(0)
    for k in range(2):
        for m in range(2):
            row, column = iy + k, ix + m
            if 0 <= row < height and 0 <= column < width:
                total += (ty if k else ONE - ty) * (tx if m else ONE - tx) * image[row, column]
    return total


@compiled
def residuals(
    first, last, of, affine, rows, columns, row_node, row_share, column_node, column_share, nodes, structure, base_variance,
    per_count, readout, frame, margin, rim, moving_known, reference_known, warped, residual, contrast, variance, inside,
    total,
):  # fmt: skip
    """Rows `first` to `last` of what n fits are made of, from `warped` moving frames, and their summed variances.

    `of` (n,) says which of m pairs of frames each is of. `frame` is the moving frames' size; with `rim`, cells outside
    it less a margin do not count. `moving_known` (m, Y, X), `reference_known` (m, Y', X') and `inside` (n, Y', X') may
    be empty, where all is known, or inside.
    """
    n, width = warped.shape[0], warped.shape[2]
    count = nodes.shape[2]
    step = max(1, BLOCK // width)
    mean, lines = np.empty((step, width), F), np.empty((2, count, width), F)
    for p in range(n):
        a, pair = affine[p], of[p]
        for kind in range(2):
            for g in range(count):
                spread_nodes(nodes[p, kind, g], column_node, column_share, lines[kind, g])
        for start in range(first, last, step):
            end = min(start + step, last)
            for i in range(start, end):
                g, t = row_node[i], row_share[i]
                blend(lines[0, g], lines[0, g + 1], t, mean[i - start])
                blend(lines[1, g], lines[1, g + 1], t, contrast[p, i])
                if inside.size:
                    line = inside[p, i]
                    for j in range(width):
                        line[j] = reference_known[pair, i, j] if reference_known.size else ONE
                    y0, x0 = a[0, 0] * rows[i] + a[0, 2], a[1, 0] * rows[i] + a[1, 2]
                    if rim:
                        mask_outside(line, y0, a[0, 1], x0, a[1, 1], columns, frame, margin)
                    if moving_known.size:
                        mask_unknown(line, y0, a[0, 1], x0, a[1, 1], columns, moving_known[pair])
            model(
                mean[: end - start].reshape(-1), contrast[p, start:end].reshape(-1),
                structure[pair, 0, start:end].reshape(-1), structure[pair, 1, start:end].reshape(-1),
                base_variance[pair, start:end].reshape(-1), per_count, readout, warped[p, start:end].reshape(-1),
                residual[p, start:end].reshape(-1), variance[p, start:end].reshape(-1),
            )  # fmt: skip
            if inside.size:
                total[p] += sum_of_product(inside[p, start:end].reshape(-1), variance[p, start:end].reshape(-1))
            else:
                total[p] += sum_of(variance[p, start:end].reshape(-1))


@inner
def spread_nodes(nodes, column_node, column_share, line):
    """Linear between the nodes of a row."""
    for j in range(len(line)):
        k = np.uint32(column_node[j])
        line[j] = nodes[k] + column_share[j] * (nodes[k + np.uint32(1)] - nodes[k])


@inner
def blend(lower, upper, share, line):
    """`share` of the way from one row to the other."""
    for j in range(len(line)):
        line[j] = lower[j] + share * (upper[j] - lower[j])


@inner
def model(mean, contrast, base, lattice, base_variance, per_count, readout, warped, residual, variance):
    """Residuals and variances; `mean` becomes intensity·base."""
    for j in range(len(mean)):
        mean[j] *= base[j]
    for j in range(len(mean)):
        residual[j] = warped[j] - mean[j] - contrast[j] * lattice[j]
    for j in range(len(mean)):
        variance[j] = mean[j] * per_count + readout + contrast[j] * contrast[j] * base_variance[j]


@inner
def sum_of(line):
    """Σ line."""
    total = 0.0
    for j in range(len(line)):
        total += line[j]
    return total


@inner
def sum_of_product(one, other):
    """Σ one·other."""
    total = 0.0
    for j in range(len(one)):
        total += one[j] * other[j]
    return total


@inner
def mask_outside(known, y0, dy, x0, dx, columns, frame, margin):
    """Zero where a row's cells lie outside the moving frame less its margin."""
    bottom, right = F(frame[0] - 1 - margin), F(frame[1] - 1 - margin)
    low = F(margin)
    for j in range(len(known)):
        y, x = F(y0 + dy * columns[j]), F(x0 + dx * columns[j])
        if not (y >= low and y <= bottom and x >= low and x <= right):
            known[j] = F(0)


@inner
def mask_unknown(known, y0, dy, x0, dx, columns, moving_known):
    """Zero where a row's cells look at what is not known of the moving frame."""
    for j in range(len(known)):
        if not linear_at(moving_known, y0 + dy * columns[j], x0 + dx * columns[j]) > F(0.99):
            known[j] = F(0)


@compiled
def weights(first, last, lowest, misfit, inside, precision, weight):
    """Rows of inverse variances, from variances in `precision`, which are bounded from below pair by pair, and of
    weights, which count `misfit` and what is not `inside`; either may be empty, and with both `weight` is not written.
    """
    for p in range(precision.shape[0]):
        low, inverse, own = lowest[p], precision[p, first:last].reshape(-1), weight[p, first:last].reshape(-1)
        for j in range(len(inverse)):
            inverse[j] = ONE / max(inverse[j], low)
        if misfit.size:
            more = misfit[p, first:last].reshape(-1)
            for j in range(len(inverse)):
                own[j] = inverse[j] / more[j]
        if inside.size:
            known, whole = inside[p, first:last].reshape(-1), own if misfit.size else inverse
            for j in range(len(inverse)):
                own[j] = whole[j] * known[j]


@inner
def add_times(line, share, powers):
    """Add `line` (c, X') times three shares to `powers` (3, c, X')."""
    values, first, second, third = line.reshape(-1), share[0], share[1], share[2]
    one, two, three = powers[0].reshape(-1), powers[1].reshape(-1), powers[2].reshape(-1)
    for j in range(len(values)):
        one[j] += first * values[j]
    for j in range(len(values)):
        two[j] += second * values[j]
    for j in range(len(values)):
        three[j] += third * values[j]


@compiled
def along_columns(powers, column_start, column_hats, moments):
    """`moments` (…, G − 1, 3): sums of the lines of `powers` (…, X') between two nodes, times the products of two hat
    functions in `column_hats` (X', 3).
    """
    lines, sums = powers.reshape(-1, powers.shape[-1]), moments.reshape(-1, len(column_start) - 1, 3)
    lower, mixed, upper = column_hats[:, 0].copy(), column_hats[:, 1].copy(), column_hats[:, 2].copy()
    for i in range(len(lines)):
        for h in range(len(column_start) - 1):
            first, last = column_start[h], column_start[h + 1]
            line, both_lower = lines[i, first:last], lower[first:last]
            one_of_each, both_upper = mixed[first:last], upper[first:last]
            one, two, three = 0.0, 0.0, 0.0
            for j in range(len(line)):
                one += both_lower[j] * line[j]
                two += one_of_each[j] * line[j]
                three += both_upper[j] * line[j]
            sums[i, h, 0], sums[i, h, 1], sums[i, h, 2] = one, two, three


@compiled
def put_together(moments, low_y, step_y, low_x, step_x, cross, band):
    """`cross` (n, 6, 2G²) and `band` (n, 2G², w), the lower band of the fields' matrix, from `moments`
    (n, G − 1, 3, 7, G − 1, 3) between nodes: images of motion and fields, then of fields, times products of two hat
    functions along y and x: both of the lower node, one of each, both of the upper one.
    """
    n, count = moments.shape[0], moments.shape[1] + 1
    nodes = np.empty((4, 3))  # of an interval: (lower, upper) along y × x, times u, v, 1
    for p in range(n):
        for g in range(count - 1):
            for h in range(count - 1):
                below, above = 2 * (g * count + h), 2 * ((g + 1) * count + h)
                for c in range(CROSS + FIELD):
                    m0, m1, m2 = moments[p, g, 0, c, h], moments[p, g, 1, c, h], moments[p, g, 2, c, h]
                    if c < CROSS:
                        by_node(nodes, m0, m1, m2, low_y[g], step_y, low_x[h], step_x)
                        row, kind = 3 * (c // 2), c % 2
                        for k in range(3):
                            cross[p, row + k, below + kind] -= nodes[0, k]
                            cross[p, row + k, below + 2 + kind] -= nodes[1, k]
                            cross[p, row + k, above + kind] -= nodes[2, k]
                            cross[p, row + k, above + 2 + kind] -= nodes[3, k]
                    else:
                        for one in range(4):
                            first = (above if one // 2 else below) + 2 * (one % 2)
                            for other in range(4):
                                second = (above if other // 2 else below) + 2 * (other % 2)
                                value = moments[p, g, one // 2 + other // 2, c, h, one % 2 + other % 2]
                                add_products(band[p], first, second, c - CROSS, value)


@inner
def by_node(nodes, m0, m1, m2, u0, du, v0, dv):
    """Sums times the hat functions of an interval's four nodes and u, v, 1, from those times products of two hat
    functions; u is u0 + du times the upper node's.
    """
    for b in range(2):  # the lower node along y, then the upper one
        z0, z1, z2 = (
            (m1[0] + m2[0], m1[1] + m2[1], m1[2] + m2[2]) if b else (m0[0] + m1[0], m0[1] + m1[1], m0[2] + m1[2])
        )
        r0, r1, r2 = (m2[0], m2[1], m2[2]) if b else (m1[0], m1[1], m1[2])
        low, up = 2 * b, 2 * b + 1
        nodes[low, 0] = u0 * (z0 + z1) + du * (r0 + r1)
        nodes[up, 0] = u0 * (z1 + z2) + du * (r1 + r2)
        nodes[low, 1], nodes[up, 1] = v0 * (z0 + z1) + dv * z1, v0 * (z1 + z2) + dv * z2
        nodes[low, 2], nodes[up, 2] = z0 + z1, z1 + z2


@inner
def add_products(band, one, other, kind, value):
    """Products of fields at two nodes, whose means are numbers `one` and `other`, in the lower band: row i holds
    columns i − w + 1 to i.
    """
    last = band.shape[1] - 1
    if kind == 0 and one >= other:
        band[one, last + other - one] += value
    elif kind == 2 and one >= other:
        band[one + 1, last + other - one] += value
    elif kind == 1:
        if one + 1 >= other:
            band[one + 1, last + other - one - 1] += value
        if one > other:
            band[one, last + other + 1 - one] += value


@compiled
def normal_sums(
    of, weight, contrast, slopes, clean, structure, share, per_count, readout, floor, row_start, row_hats, rows_u, whole,
    powers,
):  # fmt: skip
    """Sums over rows for n normal matrices, of the pairs of frames `of` (n,): `whole` (n, 3, 4, X'), images yy, yx, xx of the motion and the noise's own
    times 1, u, u², and `powers` (n, G − 1, 3, 7, X'), those of motion and fields and of the fields times products of
    two hat functions; `rows_u` (Y', 3) and `row_hats` (Y', 3) hold both.
    """
    n, width = weight.shape[0], weight.shape[2]
    line = np.empty((MOTION + CROSS + FIELD, width), F)
    every = share.shape[1] * share.shape[2] > 1
    for p in range(n):
        q = of[p]
        for g in range(len(row_start) - 1):
            for i in range(row_start[g], row_start[g + 1]):
                w, kappa, base, lattice = weight[p, i], contrast[p, i], structure[q, 0, i], structure[q, 1, i]
                along_y, along_x = clean[q, 0, i], clean[q, 1, i]
                motion_products(line, w, kappa, slopes[q, 0, i], slopes[q, 1, i], along_y, along_x)
                own = line[3]
                for j in range(width):
                    own[j] *= max(readout + per_count * max(base[j] + lattice[j], F(0)), floor)
                if every:
                    for j in range(width):
                        own[j] *= share[q, i, j]
                else:
                    for j in range(width):
                        own[j] *= share[q, 0, 0]
                cross_products(line[4], line[5], w, kappa, along_y, base, lattice)
                cross_products(line[6], line[7], w, kappa, along_x, base, lattice)
                field_products(line[8], line[9], line[10], w, base, lattice)
                add_times(line[:MOTION], rows_u[i], whole[p])
                add_times(line[MOTION:], row_hats[i], powers[p, g])


@inner
def motion_products(line, weight, contrast, slope_y, slope_x, clean_y, clean_x):
    """Rows 0 to 2 of `line`: what the motion's sums are made of; row 3: weight·contrast²."""
    yy, yx, xx, twice = line[0], line[1], line[2], line[3]
    for j in range(len(weight)):
        twice[j] = weight[j] * contrast[j] * contrast[j]
    for j in range(len(weight)):
        yy[j] = twice[j] * slope_y[j] * clean_y[j]
    for j in range(len(weight)):
        xx[j] = twice[j] * slope_x[j] * clean_x[j]
    for j in range(len(weight)):
        yx[j] = twice[j] * (slope_y[j] * clean_x[j] + slope_x[j] * clean_y[j]) * HALF


@inner
def cross_products(mean, fine, weight, contrast, slope, base, lattice):
    """Two rows of what the sums of motion and fields are made of."""
    for j in range(len(weight)):
        mean[j] = weight[j] * contrast[j] * slope[j] * base[j]
    for j in range(len(weight)):
        fine[j] = weight[j] * contrast[j] * slope[j] * lattice[j]


@inner
def field_products(mean, mixed, fine, weight, base, lattice):
    """Three rows of what the fields' sums are made of."""
    for j in range(len(weight)):
        mean[j] = weight[j] * base[j] * base[j]
    for j in range(len(weight)):
        mixed[j] = weight[j] * base[j] * lattice[j]
    for j in range(len(weight)):
        fine[j] = weight[j] * lattice[j] * lattice[j]


@compiled
def right_side(
    of, weight, residual, contrast, clean, structure, row_start, row_share, rows_u, column_start, column_share, columns_v,
    motion, field,
):  # fmt: skip
    """Sums for the right sides of n fits, of the pairs of frames `of` (n,): `motion` (n, 6) over u, v, 1 for either
    direction, and `field` (n, 2G²).
    """
    n, width = weight.shape[0], weight.shape[2]
    weighted, line = np.empty(width, F), np.empty((4, width), F)
    for p in range(n):
        q = of[p]
        whole = np.zeros((2, 2, width))  # images along y and x, times 1 and u
        for g in range(len(row_start) - 1):
            if row_start[g] == row_start[g + 1]:
                continue
            powers = np.zeros((2, 2, width))  # of mean and lattice, times 1 and the share of the way to the next node
            for i in range(row_start[g], row_start[g + 1]):
                times(weight[p, i], residual[p, i], weighted)
                times(weighted, structure[q, 0, i], line[2])
                times(weighted, structure[q, 1, i], line[3])
                times(weighted, contrast[p, i], weighted)
                times(weighted, clean[q, 0, i], line[0])
                times(weighted, clean[q, 1, i], line[1])
                add_line(line[:2].reshape(-1), rows_u[i], whole[0].reshape(-1), whole[1].reshape(-1))
                add_line(line[2:].reshape(-1), row_share[i], powers[0].reshape(-1), powers[1].reshape(-1))
            add_nodes(powers, g, column_start, column_share, field[p])
        for c in range(2):
            by_u, by_v, plain = 0.0, 0.0, 0.0
            for j in range(width):
                plain += whole[0, c, j]
                by_v += whole[0, c, j] * columns_v[j]
                by_u += whole[1, c, j]
            motion[p, 3 * c], motion[p, 3 * c + 1], motion[p, 3 * c + 2] = by_u, by_v, plain


@inner
def times(one, other, product):
    """Product of two lines."""
    for j in range(len(one)):
        product[j] = one[j] * other[j]


@inner
def add_line(line, share, plain, scaled):
    """Add a line times 1 and a share."""
    for j in range(len(line)):
        plain[j] += line[j]
    for j in range(len(line)):
        scaled[j] += share * line[j]


@inner
def add_nodes(powers, g, column_start, column_share, field):
    """Add sums of rows (1 or share, mean or lattice, X') between two nodes to those of `field` (2G²)."""
    count = len(column_start)
    for h in range(count - 1):
        below = 2 * (g * count + h)
        above = below + 2 * count
        first, last = column_start[h], column_start[h + 1]
        shares = column_share[first:last]
        for c in range(2):
            low, high, up_low, up_high = 0.0, 0.0, 0.0, 0.0  # the lower node along y, then the upper one
            plain, scaled = powers[0, c, first:last], powers[1, c, first:last]
            for j in range(len(shares)):
                share = shares[j]
                upper = scaled[j]
                lower = plain[j] - upper
                low += lower - lower * share
                high += lower * share
                up_low += upper - upper * share
                up_high += upper * share
            field[below + c] += low
            field[below + 2 + c] += high
            field[above + c] += up_low
            field[above + 2 + c] += up_high


@compiled
def factor_band(band):
    """Cholesky factors of symmetric matrices in place of their lower bands (n, N, w): row i holds columns i − w + 1
    to i. What rounding leaves of a pivot is taken for no less than that.
    """
    n, size, width = band.shape
    column, least = np.empty(width), np.empty(size)
    for p in range(n):
        f = band[p]
        for j in range(size):
            least[j] = LEAST_PIVOT * f[j, width - 1]
        for j in range(size):
            pivot = np.sqrt(max(f[j, width - 1], least[j]))
            f[j, width - 1] = pivot
            below = min(width - 1, size - 1 - j)
            for k in range(1, below + 1):
                column[k] = f[j + k, width - 1 - k] / pivot
                f[j + k, width - 1 - k] = column[k]
            for k in range(1, below + 1):
                row, own, above = f[j + k, width - k :], column[k], column[1 : k + 1]
                for m in range(len(above)):
                    row[m] -= own * above[m]


@compiled
def solve_band(factor, sides):
    """Solve in place for right sides (n, r, N), from the factors' bands (n, N, w)."""
    n, size, width = factor.shape
    for p in range(n):
        for r in range(sides.shape[1]):
            x = sides[p, r]
            for i in range(size):
                before = x[max(0, i - width + 1) : i]
                row = factor[p, i, width - 1 - len(before) : width - 1]
                total = x[i]
                for k in range(len(before)):
                    total -= row[k] * before[k]
                x[i] = total / factor[p, i, width - 1]
            for i in range(size - 1, -1, -1):
                before = x[max(0, i - width + 1) : i]
                row = factor[p, i, width - 1 - len(before) : width - 1]
                value = x[i] / factor[p, i, width - 1]
                x[i] = value
                for k in range(len(before)):
                    before[k] -= row[k] * value
