"""`bithaul up`: the whole system on one machine, in four steps: prepare, start, watch, finish."""
