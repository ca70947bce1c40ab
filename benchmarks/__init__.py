"""Speed, measured against peers in the same run on the same data: ratios, never a timed test."""
