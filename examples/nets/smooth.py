"""A selection rule: one lucky epoch does not win."""

from debiasbench.evaluation.own import rule


@rule
def smooth(rows: list[dict[str, float]]) -> int:
    """The epoch with the highest validation accuracy, averaged over three epochs around it."""
    accuracies = [row["acc_avg"] for row in rows]
    averages = [sum(part) / len(part) for part in (accuracies[max(i - 1, 0) : i + 2] for i in range(len(rows)))]
    return max(range(len(rows)), key=lambda i: (averages[i], i))
