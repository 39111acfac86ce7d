"""Figures from the papers and their authors' logs; where there is none there is None.

Errors are Σ over pixels of squared differences, averaged over images, whatever the loss.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What is known of one data set of Martens (2010)."""

    initial_loss: float
    """At a fresh sparse initialisation, over 1000 cases; draws differ."""
    initial_error: float
    train_error: float | None
    test_error: float | None
    """RAND+HF: Hessian-free from a random start."""
    source: str
    autoencoder_test_error: float
    """Hinton & Salakhutdinov (2006): pretrained, with nonlinear conjugate gradients."""


UNSTOPPED = "Martens (2010), section 8, without early stopping"

PUBLISHED: dict[str, Published] = {
    "curves": Published(
        941.3, 279.3, 0.1253, 0.1832, "the log of the author's demo, iteration 300", 1.44
    ),
    "mnist": Published(870.3, 260.7, 1.40, None, UNSTOPPED, 3.00),
    "faces": Published(1957.7, 3914.9, 12.9, None, UNSTOPPED, 126.0),
}


# The CURVES log of Martens' demo: iteration to error on the training set after it.
CURVES_LOG: dict[int, float] = {
    1: 107.2,
    2: 42.9,
    3: 24.2,
    5: 17.48,
    10: 16.90,
    20: 16.78,
    40: 15.11,
    50: 12.21,
    60: 8.54,
    75: 1.98,
    100: 0.383,
    150: 0.171,
    200: 0.138,
    300: 0.1253,
}
CURVES_LOG_DAMPING: dict[int, float] = {1: 45.0, 15: 0.23, 26: 20.0, 130: 2e-5, 300: 2e-18}
CURVES_LOG_END = 300
CURVES_LOG_CROSS_ENTROPY = 54.70  # at the end
CURVES_LOG_CG = 60_221  # CG steps in all

# ---- Sutskever et al. (2013)


@dataclass(frozen=True)
class PublishedTable:
    """One table: row and column to its number, None where the paper has none."""

    numbers: dict[str, dict[str, float | None]]
    source: str

    def get(self, row: str, column: str) -> float | None:
        return self.numbers.get(row, {}).get(column)


def _table(columns: str, rows: dict[str, str], source: str) -> PublishedTable:
    """From words separated by spaces; a dash stands for no number."""
    numbers = {
        row: {
            column: None if word == "-" else float(word)
            for column, word in zip(columns.split(), words.split(), strict=True)
        }
        for row, words in rows.items()
    }
    return PublishedTable(numbers, source)


# Mean zero-one errors, for memorisation mean wrong steps, over four seeds.
TABLE5 = _table(
    "biases 0 0.9N 0.98N 0.995N 0.9M 0.98M 0.995M",
    {
        "add-80": "0.82 0.39 0.02 0.21 0.00025 0.43 0.62 0.036",
        "mul-80": "0.84 0.48 0.36 0.22 0.0013 0.029 0.025 0.37",
        "mem-5-200": "2.5 1.27 1.02 0.96 0.63 1.12 1.09 0.92",
        "mem-20-80": "8.0 5.37 2.77 0.0144 0.00005 1.75 0.0017 0.053",
    },
    "Sutskever et al. (2013), table 5",
)

# Squared training errors of the three autoencoders. SGDc: Chapelle & Erhan (2011); HF†: the hybrid
# of appendix A.6; HF*: Martens (2010).
TABLE1 = _table(
    "0 0.9N 0.99N 0.995N 0.999N 0.9M 0.99M 0.995M 0.999M SGDc HF† HF*",
    {
        "curves": "0.48 0.16 0.096 0.091 0.074 0.15 0.10 0.10 0.10 0.16 0.058 0.11",
        "mnist": "2.1 1.0 0.73 0.75 0.80 1.0 0.77 0.84 0.90 0.9 0.69 1.40",
        "faces": "36.4 14.2 8.5 7.8 7.7 15.3 8.7 8.3 9.3 - 7.5 12.0",
    },
    "Sutskever et al. (2013), table 1",
)

# The same before and after the last updates, with μ lowered to 0.9.
TABLE2 = _table(
    "before after",
    {"curves": "0.096 0.074", "mnist": "1.20 0.73", "faces": "10.83 7.7"},
    "Sutskever et al. (2013), table 2",
)

# CURVES by the factor on the initial weights.
TABLE3 = _table(
    "0.25 0.5 1 2 4",
    {"curves": "16 16 0.074 0.083 0.35"},
    "Sutskever et al. (2013), table 3",
)
AUTOENCODER_UPDATES = 750_000

# ---- Martens (2010)

# Squared errors on training and test part. Starred: a larger weight decay, of the connection
# weights. Of FACES the baseline is the figure of Hinton & Salakhutdinov (2006).
MARTENS2010_COLUMNS = ("PT+NCG", "RAND+HF", "PT+HF")
MARTENS2010_TABLE2 = _table(
    " ".join(f"{column}/train {column}/test" for column in MARTENS2010_COLUMNS),
    {
        "curves": "0.74 0.82 0.11 0.20 0.10 0.21",
        "mnist": "2.31 2.72 1.64 2.78 1.63 2.46",
        "mnist*": "2.07 2.61 1.75 2.55 1.60 2.28",
        "faces": "- 124 55.4 139 - -",
        "faces*": "- - 60.6 122 - -",
    },
    "Martens (2010), table 2",
)

# ---- Martens & Sutskever (2011)

# Test losses on sequences of natural origin, for MIDI the log-likelihood.
TABLE1_2011 = _table(
    "RNN+HF LSTM+GD",
    {"balls": "22 35", "midi": "-569 -683", "speech": "22 41"},
    "Martens & Sutskever (2011), table 1",
)
