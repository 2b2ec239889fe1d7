"""What a policy would have cost: recorded availability of pools in, replayed runs out. Needs numpy (extra ``plan``)."""
