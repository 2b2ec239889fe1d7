"""Which pools of spot to use: what sources say of them, what a run is expected to cost in each, a diversified set."""
