"""Where a difference begins to be one: what the verdicts are judged by."""

RUN_MARGIN = 0.01
"""The smallest difference of ln t that `run` calls one: 1%."""

MARGIN = 0.02
"""`compare`: a difference of at most 2% is none in practice. FASTER and SLOWER lie beyond it, SAME within."""

ALPHA = 0.05
"""Probability of any wrong FASTER or SLOWER in a whole table, and, apart, of any wrong SAME."""

LOOKS = (12, 24, 48)
"""Rounds after which a comparison may stop. Twelve allow p = 2/4096: enough for 20 cases at the first look."""

SPENDING = (0.2, 0.3, 0.5)
"""Each look's share of the error probability; later looks, with more data, get more."""
