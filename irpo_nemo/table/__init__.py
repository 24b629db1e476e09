"""A table of runs: its rows as configurations, its numbers over seeds, and what they show.

A table is one YAML file (conf/tables/): runs, which are overrides of one configuration; rows, each of which reads an
accuracy of a run; and claims about rows and curves. `irpo table` does the runs that are not done, seed by seed, and
writes the table. No row has code of its own.
"""
