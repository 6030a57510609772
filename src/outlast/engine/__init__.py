"""Pure transitions: (state of a run, input, now) -> decision. No I/O, no clock, no randomness."""
