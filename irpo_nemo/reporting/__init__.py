"""What a run has shown: results.json, a table on the terminal, and a page. Only this room imports matplotlib."""
