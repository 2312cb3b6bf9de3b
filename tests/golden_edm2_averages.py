"""The entries of `golden/edm2.json` about averages, samplers and schedules."""

HANDLERS = {}
