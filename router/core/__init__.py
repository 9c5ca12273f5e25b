"""The pure heart: nouns, rules and sums. No I/O, no clock, no framework."""
