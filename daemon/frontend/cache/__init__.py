"""The response cache: answers that are given again without a worker. Off by default; see docs/decisions/0014."""
