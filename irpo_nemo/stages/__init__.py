"""One short file per arrow of the loop: read records, call one function, write records.

`frame.run_stage` is what launchers call; it does what all stages share (settings, leftovers, manifest).
"""
