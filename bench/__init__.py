"""What the hot path costs, and whether money in equals money out: measured from outside, over HTTP, as a user would."""
